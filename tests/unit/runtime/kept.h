// A coordinator's directory with its stores, for tests of the parts around them.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "common/files.h"
#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/janitor.h"
#include "coordinator/runtime/log_files.h"
#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {

// Whether `condition` came true before the test has to be given up.
inline bool Comes(const std::function<bool()>& condition) {
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (!condition()) {
    if (absl::Now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

inline std::unique_ptr<ArtifactStore> MustOpenArtifacts(const std::string& path) {
  auto artifacts = OpenLocalArtifactStore(path);
  EXPECT_TRUE(artifacts.ok()) << artifacts.status();
  return artifacts.ok() ? *std::move(artifacts) : nullptr;
}

struct Kept {
  ScratchDir directory;
  std::unique_ptr<Store> store = MustOpen(directory / "lemo.db");
  std::unique_ptr<ArtifactStore> artifacts = MustOpenArtifacts(directory / "artifacts");
  std::unique_ptr<ArtifactStore> checkpoints = MustOpenArtifacts(directory / "checkpoints");
  LogFiles logs{directory / "logs"};
};

// Answers the checksum.
inline std::string Publish(ArtifactStore& contents, const std::string& data) {
  const std::string sha256 = Sha256Hex(data);
  auto upload = contents.BeginUpload(data, static_cast<int64_t>(data.size()), sha256);
  EXPECT_TRUE(upload.ok()) << upload.status();
  EXPECT_TRUE((*upload)->Write(0, data).ok());
  EXPECT_TRUE((*upload)->Finish().ok());
  return sha256;
}

inline void PutFile(Store& store, const std::string& name, const std::string& sha256) {
  lemo::v1::File file;
  file.set_name(name);
  file.set_sha256(sha256);
  EXPECT_TRUE(store.CreateFile(file, "").ok());
}

inline void AppendLog(LogFiles& logs, const std::string& job, const std::string& text) {
  lemo::v1::LogChunk chunk;
  chunk.set_attempt(1);
  chunk.set_data(text);
  logs.Append(job, chunk);
}

}  // namespace lemo::coordinator
