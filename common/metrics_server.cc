#include "common/metrics_server.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/listen_address.h"
#include "common/status_macros.h"
#include "prometheus/exposer.h"

namespace lemo::metrics {
namespace {

// Connects and hangs up.
void Call(const std::string& address) {
  const std::optional<ListenAddress> peer = ParseListenAddress(address);
  if (!peer) return;
  sockaddr_in6 ipv6 = {};
  sockaddr_in ipv4 = {};
  ipv6.sin6_family = AF_INET6;
  ipv4.sin_family = AF_INET;
  ipv6.sin6_port = ipv4.sin_port = htons(static_cast<uint16_t>(peer->port));
  ::inet_pton(AF_INET6, peer->host.c_str(), &ipv6.sin6_addr);
  ::inet_pton(AF_INET, peer->host.c_str(), &ipv4.sin_addr);
  const int socket =
      ::socket(peer->ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (socket < 0) return;
  if (peer->ipv6) {
    (void)::connect(socket, reinterpret_cast<const sockaddr*>(&ipv6), sizeof(ipv6));
  } else {
    (void)::connect(socket, reinterpret_cast<const sockaddr*>(&ipv4), sizeof(ipv4));
  }
  ::close(socket);
}

std::string AddressOf(const ListenAddress& listen, int port) {
  return listen.ipv6 ? absl::StrCat("[", listen.host, "]:", port)
                     : absl::StrCat(listen.host, ":", port);
}

const Family kBytes = {Type::kCounter, "exposer_transferred_bytes_total",
                       "Bytes of metrics that were served."};
const Family kScrapes = {Type::kCounter, "exposer_scrapes_total", "Scrapes that were answered."};
const Family kLatencies = {Type::kSummary, "exposer_request_latencies",
                           "Microseconds that answers to scrapes took."};

}  // namespace

absl::Status CheckListen(const std::string& listen, bool insecure) {
  if (listen.empty()) return absl::OkStatus();
  const std::optional<ListenAddress> parsed = ParseListenAddress(listen);
  if (!parsed) {
    return absl::InvalidArgumentError(
        absl::StrCat("--metrics-listen: ", listen,
                     " is not HOST:PORT with a numeric address, such as 127.0.0.1:7411"));
  }
  if (!parsed->loopback && !insecure) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--metrics-listen: ", listen,
        " is not a loopback address, and connections are not encrypted; if the network is trusted, "
        "say --insecure-listen"));
  }
  return absl::OkStatus();
}

Server::Server() = default;

Server::~Server() {
  // The library looks every two seconds whether it is to stop, and whenever somebody calls.
  std::atomic<bool> stopped = false;
  std::thread caller([&] {
    while (!stopped) {
      Call(address_);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  exposer_ = nullptr;
  stopped = true;
  caller.join();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const std::string& listen,
                                                      std::shared_ptr<Registry> registry,
                                                      const std::filesystem::path& address_file) {
  if (listen.empty()) {
    std::error_code ignored;
    std::filesystem::remove(address_file, ignored);
    return nullptr;
  }
  const std::optional<ListenAddress> parsed = ParseListenAddress(listen);
  if (!parsed) return CheckListen(listen, /*insecure=*/true);
  std::unique_ptr<Server> server(new Server);
  server->registry_ = std::move(registry);
  // The library tells of failures by exceptions.
  try {
    server->exposer_ = std::make_unique<prometheus::Exposer>(AddressOf(*parsed, parsed->port),
                                                             /*num_threads=*/2);
  } catch (const std::exception&) {
    return absl::InvalidArgumentError(
        absl::StrCat("--metrics-listen: cannot listen on ", listen,
                     "; it is taken, or no address of this machine; port 0 takes a free one"));
  }
  server->exposer_->RegisterCollectable(server->registry_);
  const std::vector<int> ports = server->exposer_->GetListeningPorts();
  server->address_ = AddressOf(*parsed, ports.empty() ? parsed->port : ports.front());
  LEMO_RETURN_IF_ERROR(WriteFileAtomic(address_file, server->address_ + "\n"));
  return server;
}

Families Server::OwnFamilies() { return {&kBytes, &kScrapes, &kLatencies}; }

}  // namespace lemo::metrics
