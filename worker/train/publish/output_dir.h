// The output directory of a run: one run, one process at a time.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lemo::train {

struct OutputClaim {
  // What makes this run the run it is, as a JSON object: the effective spec without what may change
  // between attempts (device, output), hashes of model and data. Two runs are one when these are
  // equal.
  std::string identity_json;
  // Names that the run will write (`adapter`, `checkpoints`, `report.json`). A directory that has
  // one of them but no marker of a run is refused, so nothing of anybody else is written over;
  // other files are left alone. A directory whose run wrote none of them holds nothing to keep: it
  // goes to whichever run claims it.
  std::vector<std::string> names_written;
};

// Holds the directory's lock until destroyed. Movable.
class OutputDirectory {
 public:
  // The marker: {"format": "lemo.run_identity", "version", "created", "fingerprint", "identity"}.
  // Not `run.json`, which is what people call their spec, perhaps in this very directory.
  static constexpr const char* kMarkerName = "run_identity.json";
  static constexpr const char* kLockName = ".lemo.lock";

  // Makes `dir` where needed, locks it, writes the marker or compares it. FailedPrecondition,
  // saying what to do: the directory of another run (with the fields that differ), files in the
  // way, a process that uses it now, disk full. PermissionDenied. InvalidArgument when
  // `identity_json` is not an object. Where it refuses, the directory is as it was.
  static absl::StatusOr<OutputDirectory> Claim(const std::filesystem::path& dir,
                                               const OutputClaim& claim);

  OutputDirectory(OutputDirectory&& other) noexcept;
  OutputDirectory& operator=(OutputDirectory&& other) noexcept;
  ~OutputDirectory();

  // Takes the claim back: removes the directory where this claim made it and nothing else lies in
  // it now. For a run that turned out to be impossible before it wrote a result.
  void Withdraw();

  const std::filesystem::path& path() const { return path_; }
  // The same run was here before: there may be checkpoints to resume from.
  bool had_run() const { return had_run_; }
  // False on file systems without locks, where nothing keeps a second process away.
  bool locked() const { return locked_; }
  // SHA-256 of the identity.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  OutputDirectory() = default;

  std::filesystem::path path_;
  std::string fingerprint_;
  bool had_run_ = false;
  bool made_ = false;  // there was no such directory before
  bool locked_ = false;
  int lock_fd_ = -1;
};

}  // namespace lemo::train
