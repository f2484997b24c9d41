#include "common/listen_address.h"

#include <arpa/inet.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"

namespace lemo {

std::optional<ListenAddress> ParseListenAddress(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  ListenAddress listen;
  listen.host = text.substr(0, colon);
  const std::string port = text.substr(colon + 1);
  // SimpleAtoi would also take signs and spaces.
  if (port.empty() || port.find_first_not_of("0123456789") != std::string::npos ||
      !absl::SimpleAtoi(port, &listen.port) || listen.port > 65535) {
    return std::nullopt;
  }
  if (listen.host == "localhost") listen.host = "127.0.0.1";
  in6_addr address6;
  in_addr address4;
  if (listen.host.size() > 2 && listen.host.front() == '[' && listen.host.back() == ']') {
    listen.host = listen.host.substr(1, listen.host.size() - 2);
    listen.ipv6 = true;
    if (::inet_pton(AF_INET6, listen.host.c_str(), &address6) != 1) return std::nullopt;
    listen.loopback = IN6_IS_ADDR_LOOPBACK(&address6);
  } else {
    if (::inet_pton(AF_INET, listen.host.c_str(), &address4) != 1) return std::nullopt;
    listen.loopback = absl::StartsWith(listen.host, "127.");
  }
  return listen;
}

}  // namespace lemo
