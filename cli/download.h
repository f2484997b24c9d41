// Files of the service to this machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "cli/connection.h"
#include "cli/stream.h"
#include "lemo/v1/job_service.pb.h"

namespace lemo::cli {

// `path`, which a server named, below `directory`. INVALID_ARGUMENT when it would lead elsewhere:
// absolute, empty, with `.` or `..`, with control characters or backslashes, or through a symbolic
// link that lies below `directory`.
absl::StatusOr<std::filesystem::path> PathBelow(const std::filesystem::path& directory,
                                                const std::string& path);

struct Download {
  std::string name;  // for progress and errors
  int64_t bytes = 0;
  std::string sha256;  // hexadecimal
  // Prepares the stream of the bytes from `offset`.
  std::function<Stream<lemo::v1::DataChunk>::Reader(int64_t offset, grpc::ClientContext*,
                                                    grpc::CompletionQueue*)>
      open;
};

struct DownloadOptions {
  std::filesystem::path target;
  bool replace = false;  // a file of other contents at `target`
};

// Afterwards `target` holds all of it, checked by SHA-256 and synced to the disk, or what it held
// before. A part that came over stays beside under a hidden name, and the next attempt goes on from
// it. A file with the right contents is left alone. Errors: ALREADY_EXISTS when `target` holds
// something else and `replace` is not set, DATA_LOSS when what came over is not what was announced,
// CANCELLED after Ctrl-C, those of writing, else the service's.
absl::Status Fetch(const Connection& connection, const Download& download,
                   const DownloadOptions& options, std::ostream& err);

}  // namespace lemo::cli
