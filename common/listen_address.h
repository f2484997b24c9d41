// Where a server listens, as an option says it.
#pragma once

#include <optional>
#include <string>

namespace lemo {

struct ListenAddress {
  std::string host;  // numeric; an IPv6 address without its brackets
  int port = 0;
  bool ipv6 = false;
  bool loopback = false;  // out of reach of other machines
};

// Of `HOST:PORT` with a numeric host (an IPv6 one in brackets) or `localhost`; nullopt for anything
// else. A name is no address: what it leads to is for others to say.
std::optional<ListenAddress> ParseListenAddress(const std::string& text);

}  // namespace lemo
