// The smallest HTTP client, for tests of what serves pages.
#pragma once

#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <string>

namespace lemo::testing {

struct HttpAnswer {
  int status = 0;  // 0: no connection, or no answer in time
  std::string body;
};

// `address` is 127.0.0.1:PORT. Waits 30 s at most for each part of the answer.
inline HttpAnswer HttpGet(const std::string& address, const std::string& path) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval patience = {.tv_sec = 30, .tv_usec = 0};
  ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  sockaddr_in peer = {};
  peer.sin_family = AF_INET;
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  peer.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  HttpAnswer answer;
  std::string text;
  if (::connect(socket, reinterpret_cast<const sockaddr*>(&peer), sizeof(peer)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
    if (::send(socket, request.data(), request.size(), MSG_NOSIGNAL) ==
        static_cast<ssize_t>(request.size())) {
      char buffer[65536];
      for (ssize_t got; (got = ::recv(socket, buffer, sizeof(buffer), 0)) > 0;) {
        text.append(buffer, static_cast<size_t>(got));
      }
    }
  }
  ::close(socket);
  const size_t space = text.find(' '), end = text.find("\r\n\r\n");
  if (space == std::string::npos || end == std::string::npos) return answer;
  answer.status = std::stoi(text.substr(space + 1));
  answer.body = text.substr(end + 4);
  return answer;
}

}  // namespace lemo::testing
