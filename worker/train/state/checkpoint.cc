#include "worker/train/state/checkpoint.h"

#include <algorithm>
#include <functional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/train/state/manifest.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStateName = "state.json";
constexpr const char* kTensorSuffix = ".safetensors";
constexpr absl::Duration kLook = absl::Milliseconds(5);  // for the other parts' notes

std::string StepName(int64_t step) { return absl::StrFormat("step-%08d", step); }

// The step of "step-00000010"; nullopt for any name that StepName does not make.
std::optional<int64_t> ParseStepName(absl::string_view name) {
  int64_t step = 0;
  absl::string_view digits = name;
  if (!absl::ConsumePrefix(&digits, "step-") || !absl::SimpleAtoi(digits, &step) || step < 0 ||
      StepName(step) != name) {
    return std::nullopt;
  }
  return step;
}

// Names in `dir`; empty when it does not exist.
absl::StatusOr<std::vector<std::string>> ListNames(const fs::path& dir) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(dir, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) return ErrnoStatus(error.value(), "list", dir);
  return names;
}

// Directories that may be checkpoints, by step, newest first. A former directory whose successor
// never came into place (see AtomicDirectory) stands for its step.
absl::StatusOr<std::map<int64_t, fs::path, std::greater<>>> FindCandidates(const fs::path& dir) {
  LEMO_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListNames(dir));
  std::map<int64_t, fs::path, std::greater<>> candidates;
  for (const std::string& name : names) {
    if (const std::optional<int64_t> step = ParseStepName(name)) candidates[*step] = dir / name;
  }
  for (const std::string& name : names) {
    absl::string_view inner = name;
    if (!absl::ConsumePrefix(&inner, ".") || !absl::ConsumeSuffix(&inner, ".old")) continue;
    if (const std::optional<int64_t> step = ParseStepName(inner)) {
      candidates.try_emplace(*step, dir / name);
    }
  }
  return candidates;
}

absl::Status CheckStem(const std::string& stem) {
  if (stem.empty() || stem.front() == '.' || stem.find('/') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", stem, "\" cannot name a file of a checkpoint"));
  }
  return absl::OkStatus();
}

// Of a part other than the first: what it wrote, as a manifest of its own, or why it could not.
std::string NoteName(int part) { return absl::StrFormat("part-%05d.json", part + 1); }
std::string FaultName(int part) { return absl::StrFormat("part-%05d.fault", part + 1); }

std::string FileName(const std::string& stem, const CheckpointContents& contents) {
  if (contents.parts == 1) return absl::StrCat(stem, kTensorSuffix);
  return absl::StrFormat("%s-%05d-of-%05d%s", stem, contents.part + 1, contents.parts,
                         kTensorSuffix);
}

int64_t BytesWanted(const CheckpointContents& contents) {
  int64_t bytes = static_cast<int64_t>(contents.state_json.size());
  for (const auto& [stem, tensors] : contents.tensors) {
    for (const auto& [name, tensor] : tensors) bytes += static_cast<int64_t>(tensor.bytes.size());
  }
  return bytes;
}

absl::Status CannotSave(const CheckpointContents& contents, const absl::Status& why) {
  return absl::Status(why.code(),
                      absl::StrCat("cannot save the checkpoint of step ", contents.step, " (",
                                   BytesWanted(contents), " bytes): ", why.message(),
                                   "; the former checkpoints are as they were"));
}

// Writes the tensors of one part and lists the files.
absl::Status WriteTensors(const CheckpointContents& contents, const fs::path& directory,
                          Manifest* manifest) {
  for (const auto& [stem, tensors] : contents.tensors) {
    const std::string name = FileName(stem, contents);
    LEMO_RETURN_IF_ERROR(WriteSafetensors(directory / name, tensors, {}));
    LEMO_ASSIGN_OR_RETURN(manifest->files[name], DescribeFile(directory / name));
  }
  return absl::OkStatus();
}

absl::StatusOr<Manifest> AwaitPart(int part, const fs::path& directory,
                                   const std::function<bool()>& give_up) {
  for (;;) {
    // Asked first: what was written before the answer is still seen.
    const bool last = give_up();
    const absl::StatusOr<std::string> note = ReadFile(directory / NoteName(part));
    if (note.ok()) return ParseManifest(*note, directory / NoteName(part));
    const absl::StatusOr<std::string> fault = ReadFile(directory / FaultName(part));
    if (fault.ok()) {
      return absl::FailedPreconditionError(absl::StrCat("part ", part + 1, ": ", *fault));
    }
    if (last) return absl::AbortedError(absl::StrCat("part ", part + 1, " was not written"));
    absl::SleepFor(kLook);
  }
}

// Writes the first part and, when the others are there, the manifest of all.
absl::Status WriteContents(const CheckpointContents& contents, const fs::path& directory,
                           const std::function<bool()>& give_up) {
  Manifest manifest;
  manifest.step = contents.step;
  manifest.eval_loss = contents.eval_loss;
  manifest.created = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  const auto write = [&]() -> absl::Status {
    LEMO_RETURN_IF_ERROR(WriteTensors(contents, directory, &manifest));
    LEMO_RETURN_IF_ERROR(WriteFileAtomic(directory / kStateName, contents.state_json));
    LEMO_ASSIGN_OR_RETURN(manifest.files[kStateName], DescribeFile(directory / kStateName));
    return absl::OkStatus();
  };
  absl::Status status = write();
  // Of the others' parts too when this one failed: they would find their directory gone and name
  // that as the fault.
  for (int part = 1; part < contents.parts; ++part) {
    const absl::StatusOr<Manifest> note = AwaitPart(part, directory, give_up);
    status.Update(note.status());
    if (!note.ok()) continue;
    manifest.files.insert(note->files.begin(), note->files.end());
    std::error_code ignored;  // one that stays is no file of the manifest
    fs::remove(directory / NoteName(part), ignored);
  }
  LEMO_RETURN_IF_ERROR(status);
  return WriteFileAtomic(directory / kManifestName, ManifestToJson(manifest));
}

}  // namespace

CheckpointStore::CheckpointStore(fs::path dir, RetentionOptions retention)
    : dir_(std::move(dir)), retention_(retention) {}

const TensorView* LoadedCheckpoint::Find(const std::string& stem, const std::string& name) const {
  for (auto file = files.lower_bound(stem); file != files.end(); ++file) {
    absl::string_view rest = file->first;
    if (!absl::ConsumePrefix(&rest, stem)) break;
    if (!rest.empty() && rest.front() != '-') continue;
    const auto found = file->second.tensors().find(name);
    if (found != file->second.tensors().end()) return &found->second;
  }
  return nullptr;
}

absl::StatusOr<AtomicDirectory> CheckpointStore::Begin(int64_t step) {
  if (step < 0) {
    return absl::InvalidArgumentError(absl::StrCat("a checkpoint cannot have the step ", step));
  }
  LEMO_RETURN_IF_ERROR(MakeDirectories(dir_));
  // First, because the room that leftovers take may be what this checkpoint needs.
  LEMO_RETURN_IF_ERROR(RemoveLeftovers());
  return AtomicDirectory::Begin(dir_ / StepName(step));
}

absl::StatusOr<fs::path> CheckpointStore::Finish(AtomicDirectory directory,
                                                 const CheckpointContents& contents,
                                                 const std::function<bool()>& give_up) {
  for (const auto& [stem, tensors] : contents.tensors) LEMO_RETURN_IF_ERROR(CheckStem(stem));
  {
    // Gone, with what was written, before retention looks.
    AtomicDirectory made = std::move(directory);
    absl::Status status = WriteContents(contents, made.path(), give_up);
    if (status.ok()) status = made.Commit();
    if (!status.ok()) return CannotSave(contents, status);
  }
  ApplyRetention(contents.step);
  return dir_ / StepName(contents.step);
}

absl::StatusOr<fs::path> CheckpointStore::Save(const CheckpointContents& contents) {
  for (const auto& [stem, tensors] : contents.tensors) LEMO_RETURN_IF_ERROR(CheckStem(stem));
  absl::StatusOr<AtomicDirectory> directory = Begin(contents.step);
  if (!directory.ok()) return directory.status();
  return Finish(*std::move(directory), contents, [] { return false; });
}

absl::Status CheckpointStore::WritePart(const CheckpointContents& contents) const {
  const fs::path directory = AtomicDirectory::TemporaryPath(dir_ / StepName(contents.step));
  const auto write = [&]() -> absl::Status {
    for (const auto& [stem, tensors] : contents.tensors) LEMO_RETURN_IF_ERROR(CheckStem(stem));
    Manifest note;
    note.step = contents.step;
    LEMO_RETURN_IF_ERROR(WriteTensors(contents, directory, &note));
    return WriteFileAtomic(directory / NoteName(contents.part), ManifestToJson(note));
  };
  absl::Status status = write();
  if (status.ok()) return status;
  status = CannotSave(contents, status);
  WriteFileAtomic(directory / FaultName(contents.part), std::string(status.message()))
      .IgnoreError();
  return status;
}

absl::Status CheckpointStore::RemoveLeftovers() {
  LEMO_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListNames(dir_));
  for (const std::string& name : names) {
    absl::string_view inner = name;
    if (!absl::ConsumePrefix(&inner, ".")) continue;
    const bool former = absl::ConsumeSuffix(&inner, ".old");
    if (!former && !absl::ConsumeSuffix(&inner, ".tmp")) continue;
    if (!ParseStepName(inner).has_value()) continue;
    if (former) {
      LEMO_RETURN_IF_ERROR(AtomicDirectory::Recover(dir_ / std::string(inner)));
      continue;
    }
    std::error_code error;
    fs::remove_all(dir_ / name, error);
    if (error) return ErrnoStatus(error.value(), "remove", dir_ / name);
  }
  return absl::OkStatus();
}

void CheckpointStore::ApplyRetention(int64_t just_saved) {
  const auto candidates = FindCandidates(dir_);
  if (!candidates.ok()) return;  // nothing is lost by keeping more; the next Save tries again
  const int64_t keep_last = std::max<int64_t>(retention_.keep_last, 1);
  std::set<int64_t> whole, kept = {just_saved};
  std::optional<double> best_loss;
  int64_t best_step = 0;
  for (const auto& [step, path] : *candidates) {
    // Sizes only: reading every checkpoint again at every save would cost more than the save.
    const absl::StatusOr<Manifest> manifest = ReadManifest(path);
    if (!manifest.ok() || !VerifyFiles(*manifest, path, VerifyLevel::kSizes).ok()) continue;
    if (static_cast<int64_t>(whole.size()) < keep_last) kept.insert(step);
    whole.insert(step);
    if (manifest->eval_loss.has_value() && (!best_loss || *manifest->eval_loss < *best_loss)) {
      best_loss = manifest->eval_loss;
      best_step = step;
    }
  }
  if (retention_.keep_best && best_loss.has_value()) kept.insert(best_step);
  for (const int64_t step : whole) {
    if (!kept.contains(step)) AtomicDirectory::Remove(candidates->at(step)).IgnoreError();
  }
}

absl::StatusOr<std::optional<LoadedCheckpoint>> CheckpointStore::LoadNewest(
    std::vector<std::string>* skipped) const {
  LEMO_ASSIGN_OR_RETURN(const auto candidates, FindCandidates(dir_));
  for (const auto& [step, path] : candidates) {
    absl::StatusOr<LoadedCheckpoint> loaded = Load(path);
    if (loaded.ok() && loaded->step == step) return std::optional(*std::move(loaded));
    if (skipped == nullptr) continue;
    skipped->push_back(loaded.ok()
                           ? absl::StrCat(path.string(), ": its manifest is of step ", loaded->step)
                           : absl::StrCat(path.string(), ": ", loaded.status().message()));
  }
  return std::nullopt;
}

absl::StatusOr<LoadedCheckpoint> CheckpointStore::Load(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    return absl::NotFoundError(absl::StrCat("there is no checkpoint directory ", path.string()));
  }
  LEMO_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(path));
  if (!manifest.files.contains(kStateName)) {
    return absl::InvalidArgumentError(
        absl::StrCat((path / kManifestName).string(), " lists no ", kStateName));
  }
  LEMO_RETURN_IF_ERROR(VerifyFiles(manifest, path, VerifyLevel::kChecksums));
  LoadedCheckpoint loaded;
  loaded.step = manifest.step;
  loaded.path = path;
  LEMO_ASSIGN_OR_RETURN(loaded.state_json, ReadFile(path / kStateName));
  for (const auto& [name, file] : manifest.files) {
    absl::string_view stem = name;
    if (!absl::ConsumeSuffix(&stem, kTensorSuffix)) continue;
    LEMO_ASSIGN_OR_RETURN(SafetensorsFile opened, SafetensorsFile::Open(path / name));
    loaded.files.emplace(std::string(stem), std::move(opened));
  }
  return loaded;
}

absl::Status CheckpointStore::Clear() {
  LEMO_RETURN_IF_ERROR(RemoveLeftovers());
  LEMO_ASSIGN_OR_RETURN(const auto candidates, FindCandidates(dir_));
  for (const auto& [step, path] : candidates) {
    LEMO_RETURN_IF_ERROR(AtomicDirectory::Remove(path));
  }
  return absl::OkStatus();
}

}  // namespace lemo::train
