// Serves a registry at /metrics over HTTP.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/metrics.h"

namespace prometheus {
class Exposer;
}

namespace lemo::metrics {

// Whether `listen` is HOST:PORT with a numeric host or `localhost`, and the host this machine's
// loopback unless `insecure`. InvalidArgument says what to do; "" is fine, and means no port.
absl::Status CheckListen(const std::string& listen, bool insecure);

// Until destroyed, which waits for requests under way. Two threads.
class Server {
 public:
  // `listen` passes CheckListen; port 0 takes a free one. InvalidArgument when the address cannot
  // be had. The address is written to `address_file`, atomically; nullptr when `listen` is empty,
  // and what an earlier process wrote there is removed.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const std::string& listen,
                                                       std::shared_ptr<Registry> registry,
                                                       const std::filesystem::path& address_file);
  ~Server();

  // HOST:PORT, as bound.
  const std::string& address() const { return address_; }

  // What the server counts by itself and serves beside the registry.
  static Families OwnFamilies();

 private:
  Server();

  std::shared_ptr<Registry> registry_;  // the exposer holds it weakly
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string address_;
};

}  // namespace lemo::metrics
