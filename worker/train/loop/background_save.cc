#include "worker/train/loop/background_save.h"

#include <chrono>
#include <utility>

namespace lemo::train {

namespace {

// Less than a failing gang takes to part (mpi_world.cc).
constexpr std::chrono::seconds kGrace{4};

}  // namespace

BackgroundSave::~BackgroundSave() {
  Hurry();
  Take(/*wait=*/true);
}

void BackgroundSave::Begin(std::optional<AtomicDirectory> directory, CheckpointContents contents,
                           std::vector<at::Tensor> tensors, std::string reason) {
  writing_ = std::async(std::launch::async, [this, directory = std::move(directory),
                                             contents = std::move(contents),
                                             tensors = std::move(tensors),
                                             reason = std::move(reason)]() mutable {
    const auto start = std::chrono::steady_clock::now();
    Done done{.step = contents.step, .reason = std::move(reason), .path = std::filesystem::path()};
    if (directory) {
      std::optional<std::chrono::steady_clock::time_point> since;
      done.path = store_->Finish(*std::move(directory), contents, [&] {
        if (!hurried_ && !broken_()) return false;
        if (!since) since = std::chrono::steady_clock::now();
        return std::chrono::steady_clock::now() - *since > kGrace;
      });
    } else if (absl::Status status = store_->WritePart(contents); !status.ok()) {
      done.path = std::move(status);
    }
    done.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return done;
  });
}

std::optional<BackgroundSave::Done> BackgroundSave::Take(bool wait) {
  if (!writing_.valid()) return std::nullopt;
  if (!wait && writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    return std::nullopt;
  }
  return writing_.get();
}

}  // namespace lemo::train
