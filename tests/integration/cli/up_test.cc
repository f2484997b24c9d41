// lemo up, with stand-ins for the programs that it starts: what it starts it ends.
#include <chrono>
#include <csignal>
#include <thread>

#include "gmock/gmock.h"
#include "tests/integration/cli/run_lemo.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Writes down how it was called, tells the address of the test's own server, and stays until asked
// to leave.
constexpr char kStandIn[] = R"(#!/bin/sh
name=$(basename "$0")
echo "$@" > "$STAND_IN/$name.args"
while [ $# -gt 0 ]; do
  if [ "$1" = --dir ]; then dir=$2; fi
  shift
done
trap 'echo left >> "$STAND_IN/$name.left"; exit 0' TERM
if [ "$name" = "$STAND_IN_FAILS" ]; then echo "out of luck" >&2; exit 7; fi
if [ "$name" = lemo-coordinator ]; then
  echo "$STAND_IN_ADDRESS" > "$dir/address.new"
  mv "$dir/address.new" "$dir/address"
fi
echo $$ > "$STAND_IN/$name.pid"
while :; do sleep 0.02; done
)";

class UpTest : public CliTest {
 protected:
  void SetUp() override {
    fs::create_directories(directory_ / "bin");
    fs::copy_file(LEMO_PROGRAM, directory_ / "bin/lemo");
    for (const char* name : {"lemo-coordinator", "lemo-worker", "lemo-train"}) {
      const fs::path program = Write("bin/" + std::string(name), kStandIn);
      fs::permissions(program, fs::perms::owner_all);
    }
    state_.workers.emplace_back().set_state(lemo::v1::Worker::READY);
  }

  // A stand-in that has written its process id hears signals.
  bool Await(const std::string& file) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!fs::exists(directory_ / file)) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }

  std::unique_ptr<Lemo> Up(const std::string& failing = "") {
    return std::make_unique<Lemo>(
        directory_, "", std::vector<std::string>{"up", "--dir", "data", "--listen", "127.0.0.1:0"},
        std::map<std::string, std::string>{{"STAND_IN", directory_.string()},
                                           {"STAND_IN_ADDRESS", server_->address()},
                                           {"STAND_IN_FAILS", failing}},
        (directory_ / "bin/lemo").string());
  }
};

TEST_F(UpTest, StartsBothAndEndsBoth) {
  const std::unique_ptr<Lemo> up = Up();
  ASSERT_TRUE(Await("lemo-worker.pid"));
  ASSERT_TRUE(up->WaitForOut("LeMo is up at " + server_->address())) << up->Wait().err;
  const std::string data = (directory_ / "data").string();
  const std::string train = (directory_ / "bin/lemo-train").string();
  EXPECT_EQ(Read("lemo-coordinator.args"),
            "--listen 127.0.0.1:0 --dir " + data +
                "/coordinator --metrics-listen 127.0.0.1:0 --train " + train + "\n");
  EXPECT_THAT(Read("lemo-worker.args"),
              HasSubstr("--coordinator " + server_->address() + " --dir " + data + "/worker"));
  EXPECT_THAT(Read("lemo-worker.args"),
              HasSubstr(" --model-root " + fs::canonical(directory_).string() + "\n"));
  up->Signal(SIGINT);
  const Outcome ended = up->Wait();
  EXPECT_EQ(ended.code, 0) << ended.err;
  for (const char* name : {"lemo-coordinator", "lemo-worker"}) {
    EXPECT_EQ(Read(std::string(name) + ".left"), "left\n") << name;
  }
}

TEST_F(UpTest, AProgramThatFailsEndsTheOther) {
  const std::unique_ptr<Lemo> up = Up("lemo-worker");
  // The worker may be dead before or after it counts as registered.
  const Outcome ended = up->Wait();
  EXPECT_EQ(ended.code, 4);
  EXPECT_THAT(ended.err,
              AllOf(HasSubstr("the worker ended (exit code 7)"), HasSubstr("out of luck")));
  EXPECT_EQ(Read("lemo-coordinator.left"), "left\n");
}

TEST_F(UpTest, ACoordinatorThatFailsIsTold) {
  const std::unique_ptr<Lemo> up = Up("lemo-coordinator");
  const Outcome ended = up->Wait();
  EXPECT_EQ(ended.code, 4);
  EXPECT_THAT(ended.err, HasSubstr("the coordinator ended (exit code 7)"));
  EXPECT_FALSE(fs::exists(directory_ / "lemo-worker.args"));
}

TEST_F(UpTest, AMissingProgramIsNamed) {
  fs::remove(directory_ / "bin/lemo-train");
  const Outcome ended = Up()->Wait();
  EXPECT_EQ(ended.code, 2);
  EXPECT_THAT(ended.err, AllOf(HasSubstr("there is no lemo-train"), HasSubstr("./dev build")));
}

}  // namespace
}  // namespace lemo::cli
