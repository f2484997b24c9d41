#include "tests/support/test_gang.h"

#include <gtest/gtest.h>

#include <iostream>
#include <memory>

namespace lemo::train {
namespace {

std::unique_ptr<Gang> gang;

}  // namespace

Gang& TestGang() { return *gang; }

}  // namespace lemo::train

int main(int argc, char** argv) {
  using lemo::train::gang;
  testing::InitGoogleTest(&argc, argv);
  absl::StatusOr<std::unique_ptr<lemo::train::Gang>> joined = lemo::train::Gang::Join();
  if (!joined.ok()) {
    std::cerr << joined.status() << "\n";
    return 1;
  }
  gang = *std::move(joined);
  lemo::v1::ParallelSpec parallel;
  parallel.set_timeout_seconds(60);
  if (const absl::Status arranged = gang->Arrange(&parallel, c10::kCPU); !arranged.ok()) {
    std::cerr << arranged << "\n";
    return 1;
  }
  const int result = RUN_ALL_TESTS();
  gang->Leave(result == 0 ? absl::OkStatus() : absl::InternalError("a test failed"));
  return result;
}
