// The other nodes of a gang, as its lead sees them.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lemo/v1/node_service.pb.h"
#include "worker/agent/rank_runner.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {

struct Peer {
  std::string host;     // what mpirun calls it: HostOf
  std::string worker;   // `workers/{id}`
  std::string address;  // of its NodeService
};

// What a lead needs for asking them. Its file is read by `lemo-worker exec`.
struct GangFile {
  lemo::v1::GangKey key;
  std::vector<Peer> peers;

  // Of an assignment to the lead. FailedPrecondition when a node has no address.
  static absl::StatusOr<GangFile> Of(const lemo::v1::Assignment& assignment);
  // Only the owner may read it: it holds the token.
  absl::Status Write(const std::filesystem::path& path) const;
  static absl::StatusOr<GangFile> Read(const std::filesystem::path& path);
};

// Waits until every peer is ready, however long it fetches. Unavailable when one cannot be reached
// for half a minute, what it says when it refuses; Cancelled. Blocks.
absl::Status AwaitReady(const GangFile& gang, Canceller* canceller);

// A rank on another node that has ended.
struct RemoteEnd {
  RankEnd end;  // on this node's clock
  std::string log_tail;
};

// Has what is left of the gang ended on all peers, and answers how its ranks ended, by number. Of a
// peer that cannot be reached within some seconds nothing is known. Blocks.
std::map<int, RemoteEnd> EndRanks(const GangFile& gang);

}  // namespace lemo::agent
