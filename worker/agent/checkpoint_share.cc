#include "worker/agent/checkpoint_share.h"

#include <algorithm>
#include <iostream>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/agent/fetch.h"
#include "worker/agent/result_upload.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;
using lemo::v1::JobCheckpoint;

// In the run's output directory, beside its checkpoints: says whose directory it is, and a run goes
// on in none that does not say so.
constexpr char kIdentity[] = "run_identity.json";
constexpr char kCheckpoints[] = "checkpoints";

// The checkpoint `name` and what it needs, linked below `to` as they lie below `out`.
std::error_code Link(const fs::path& out, const std::string& name, const fs::path& to) {
  std::error_code error;
  fs::create_directories(to / kCheckpoints / name, error);
  if (!error) fs::create_hard_link(out / kIdentity, to / kIdentity, error);
  const fs::path from = out / kCheckpoints / name;
  for (fs::directory_iterator entry(from, error), end; !error && entry != end;
       entry.increment(error)) {
    fs::create_hard_link(entry->path(), to / kCheckpoints / name / entry->path().filename(), error);
    if (error) break;
  }
  return error;
}

absl::StatusOr<JobCheckpoint> Upload(const lemo::v1::AttemptId& id, int step,
                                     const fs::path& directory, lemo::v1::WorkerService::Stub* stub,
                                     Canceller* canceller) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->is_regular_file()) files.push_back(entry->path());
  }
  if (error) return ErrnoStatus(error.value(), "list", directory);
  std::sort(files.begin(), files.end());
  JobCheckpoint checkpoint;
  checkpoint.set_step(step);
  for (const fs::path& file : files) {
    const std::string name = file.lexically_relative(directory).string();
    LEMO_ASSIGN_OR_RETURN(lemo::v1::Artifact stored,
                          UploadFile(id, file, absl::StrCat("checkpoint/", name), stub, canceller));
    stored.set_path(name);
    *checkpoint.add_files() = std::move(stored);
  }
  return checkpoint;
}

// The last step of which a checkpoint lies in `directory`; 0 when there is none.
int64_t NewestStep(const fs::path& directory) {
  int64_t newest = 0;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    int64_t step = 0;
    if (absl::StartsWith(name, "step-") && absl::SimpleAtoi(name.substr(5), &step)) {
      newest = std::max(newest, step);
    }
  }
  return newest;
}

}  // namespace

CheckpointShare::CheckpointShare(lemo::v1::AttemptId id, fs::path out, fs::path scratch,
                                 int64_t limit, lemo::v1::WorkerService::Stub* stub, Waker* waker)
    : id_(std::move(id)),
      out_(std::move(out)),
      scratch_(std::move(scratch)),
      limit_(limit),
      stub_(stub),
      waker_(waker) {
  std::error_code ignored;
  fs::remove_all(scratch_, ignored);
}

CheckpointShare::~CheckpointShare() {
  Cancel();
  if (transfer_ != nullptr) transfer_->thread.join();
  std::error_code ignored;
  fs::remove_all(scratch_, ignored);
}

void CheckpointShare::Cancel() {
  cancelled_ = true;
  next_.reset();
  if (transfer_ != nullptr) transfer_->canceller.Cancel();
}

void CheckpointShare::Offer(const lemo::v1::CheckpointEvent& event) {
  // One that the run has only read is with the coordinator already, or was too large.
  if (cancelled_ || event.reason() == "resumed" || event.bytes() > limit_) return;
  Linked linked{event.step(), scratch_ / absl::StrCat(event.step())};
  const std::string name = fs::path(event.path()).filename().string();
  std::error_code ignored;
  if (const std::error_code error = Link(out_, name, linked.directory)) {
    // Often only that the run has removed it meanwhile.
    std::cerr << "lemo-worker: " << id_.job() << ": " << name
              << " is not handed over: " << error.message() << "\n";
    fs::remove_all(linked.directory, ignored);
    return;
  }
  if (next_) fs::remove_all(next_->directory, ignored);
  next_ = std::move(linked);
  if (transfer_ == nullptr) Start(*std::exchange(next_, std::nullopt));
}

void CheckpointShare::Start(Linked linked) {
  transfer_ = std::make_unique<Transfer>();
  transfer_->thread = std::thread([transfer = transfer_.get(), linked = std::move(linked), id = id_,
                                   stub = stub_, waker = waker_] {
    transfer->result = Upload(id, linked.step, linked.directory, stub, &transfer->canceller);
    std::error_code ignored;
    fs::remove_all(linked.directory, ignored);
    transfer->done = true;
    waker->Wake();
  });
}

std::optional<JobCheckpoint> CheckpointShare::Advance() {
  if (transfer_ == nullptr || !transfer_->done) return std::nullopt;
  transfer_->thread.join();
  const std::unique_ptr<Transfer> ended = std::move(transfer_);
  if (next_) Start(*std::exchange(next_, std::nullopt));
  if (ended->result.ok()) return *std::move(ended->result);
  if (!cancelled_) {
    std::cerr << "lemo-worker: " << id_.job()
              << ": a checkpoint is not handed over: " << ended->result.status().message() << "\n";
  }
  return std::nullopt;
}

absl::Status FetchCheckpoint(const std::string& job, const JobCheckpoint& checkpoint,
                             const fs::path& out, lemo::v1::JobService::Stub* stub,
                             Canceller* canceller) {
  if (NewestStep(out / kCheckpoints) >= checkpoint.step()) return absl::OkStatus();
  std::string name;  // of the checkpoint's directory
  for (const lemo::v1::Artifact& file : checkpoint.files()) {
    const std::vector<std::string> parts = absl::StrSplit(file.path(), '/');
    const bool plain = std::all_of(parts.begin(), parts.end(), [](const std::string& part) {
      return !part.empty() && part.front() != '.';
    });
    if (plain && file.path() == kIdentity) continue;
    if (!plain || parts.size() != 3 || parts[0] != kCheckpoints ||
        (!name.empty() && parts[1] != name)) {
      return absl::InvalidArgumentError(absl::StrCat("no file of a checkpoint: ", file.path()));
    }
    name = parts[1];
  }
  if (name.empty()) return absl::InvalidArgumentError("a checkpoint without files");

  // Beside the output directory: one with checkpoints, or a part of them, and without the identity
  // is taken for somebody else's.
  const fs::path beside = out.parent_path() / "fetched";
  std::error_code error;
  fs::remove_all(beside, error);
  absl::Cleanup clean = [&beside] {
    std::error_code ignored;
    fs::remove_all(beside, ignored);
  };
  LEMO_RETURN_IF_ERROR(MakeDirectories(beside / name));
  for (const lemo::v1::Artifact& file : checkpoint.files()) {
    FetchRequest fetch{.name = file.path(),
                       .bytes = file.bytes(),
                       .sha256 = file.sha256(),
                       .path = file.path() == kIdentity
                                   ? beside / kIdentity
                                   : beside / name / fs::path(file.path()).filename(),
                       .open = nullptr};
    fetch.open = [stub, &job, &file](grpc::ClientContext* context, int64_t offset) {
      lemo::v1::DownloadArtifactRequest request;
      request.set_name(job);
      request.set_path(absl::StrCat("checkpoint/", file.path()));
      request.set_offset(offset);
      return stub->DownloadArtifact(context, request);
    };
    LEMO_RETURN_IF_ERROR(FetchFile(fetch, canceller));
  }
  LEMO_RETURN_IF_ERROR(MakeDirectories(out));
  if (!fs::exists(out / kIdentity, error)) fs::rename(beside / kIdentity, out / kIdentity, error);
  if (error) return ErrnoStatus(error.value(), "rename", beside / kIdentity);
  const fs::path target = out / kCheckpoints / name;
  LEMO_RETURN_IF_ERROR(MakeDirectories(target.parent_path()));
  fs::remove_all(target, error);
  fs::rename(beside / name, target, error);
  if (error) return ErrnoStatus(error.value(), "rename", beside / name);
  return absl::OkStatus();
}

}  // namespace lemo::agent
