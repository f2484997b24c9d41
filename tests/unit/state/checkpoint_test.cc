#include "worker/train/state/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "tests/support/test_checkpoint.h"
#include "worker/train/state/atomic_directory.h"
#include "worker/train/state/manifest.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

void Save(CheckpointStore& store, int64_t step, std::optional<double> eval_loss = std::nullopt,
          int variant = 0) {
  TestCheckpoint checkpoint(step, variant);
  checkpoint.contents().eval_loss = eval_loss;
  const auto path = store.Save(checkpoint.contents());
  ASSERT_TRUE(path.ok()) << path.status();
}

LoadedCheckpoint Newest(const CheckpointStore& store) {
  auto loaded = store.LoadNewest(nullptr);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  if (!loaded.ok() || !loaded->has_value()) return {.step = -1};
  return *std::move(*loaded);
}

TEST(CheckpointStore, ReadsWhatItWrote) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path() / "checkpoints", {});
  TestCheckpoint checkpoint(7);
  const auto path = store.Save(checkpoint.contents());
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, scratch.path() / "checkpoints" / "step-00000007");
  EXPECT_THAT(Names(*path), ElementsAre("manifest.json", "optimizer.safetensors", "state.json",
                                        "trainables.safetensors"));
  EXPECT_TRUE(checkpoint.Equals(Newest(store)));
  const auto loaded = CheckpointStore::Load(*path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(checkpoint.Equals(*loaded));
}

// What the rank of one part has of a checkpoint: the second has nothing but a moment.
CheckpointContents PartOf(const TestCheckpoint& whole, int part) {
  CheckpointContents contents = whole.contents();
  contents.part = part;
  contents.parts = 2;
  if (part == 0) {
    contents.tensors.at("optimizer").erase("moment2");
  } else {
    contents.state_json.clear();
    contents.tensors.erase("trainables");
    contents.tensors.at("optimizer").erase("moment1");
  }
  return contents;
}

bool Never() { return false; }

TEST(CheckpointParts, OfTwoWritersMakeOneCheckpoint) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  const TestCheckpoint checkpoint(7);
  auto directory = store.Begin(7);
  ASSERT_TRUE(directory.ok()) << directory.status();
  absl::Status other;
  std::thread second(
      [&] { other = CheckpointStore(scratch.path(), {}).WritePart(PartOf(checkpoint, 1)); });
  const auto path = store.Finish(*std::move(directory), PartOf(checkpoint, 0), Never);
  second.join();
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_TRUE(other.ok()) << other;
  EXPECT_THAT(Names(*path), ElementsAre("manifest.json", "optimizer-00001-of-00002.safetensors",
                                        "optimizer-00002-of-00002.safetensors", "state.json",
                                        "trainables-00001-of-00002.safetensors"));
  const LoadedCheckpoint loaded = Newest(store);
  EXPECT_EQ(loaded.state_json, checkpoint.contents().state_json);
  for (const auto& [stem, tensors] : checkpoint.contents().tensors) {
    for (const auto& [name, tensor] : tensors) {
      const TensorView* found = loaded.Find(stem, name);
      ASSERT_NE(found, nullptr) << stem << " " << name;
      EXPECT_EQ(found->bytes, tensor.bytes);
    }
  }
  EXPECT_EQ(loaded.Find("optimizer", "weight"), nullptr);
  EXPECT_EQ(loaded.Find("optim", "moment1"), nullptr);
}

TEST(CheckpointParts, AFaultOfAnotherWriterIsTold) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  Save(store, 1);
  const TestCheckpoint checkpoint(7);
  auto directory = store.Begin(7);
  ASSERT_TRUE(directory.ok()) << directory.status();
  CheckpointContents bad = PartOf(checkpoint, 1);
  bad.tensors["no/name"] = bad.tensors.at("optimizer");
  EXPECT_FALSE(store.WritePart(bad).ok());
  const auto path = store.Finish(*std::move(directory), PartOf(checkpoint, 0), Never);
  EXPECT_THAT(std::string(path.status().message()), HasSubstr("no/name"));
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000001"));
}

TEST(CheckpointParts, OneThatNeverComesIsGivenUp) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  Save(store, 1);
  const TestCheckpoint checkpoint(7);
  auto directory = store.Begin(7);
  ASSERT_TRUE(directory.ok()) << directory.status();
  int asked = 0;
  const auto path =
      store.Finish(*std::move(directory), PartOf(checkpoint, 0), [&asked] { return ++asked == 3; });
  EXPECT_EQ(path.status().code(), absl::StatusCode::kAborted) << path.status();
  EXPECT_THAT(std::string(path.status().message()), HasSubstr("part 2"));
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000001"));
}

TEST(CheckpointStore, NoDirectoryIsNoCheckpoint) {
  const ScratchDir scratch;
  const CheckpointStore store(scratch.path() / "absent", {});
  const auto loaded = store.LoadNewest(nullptr);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_FALSE(loaded->has_value());
  EXPECT_EQ(CheckpointStore::Load(scratch.path() / "absent").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(CheckpointStore, KeepsTheLast) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {.keep_last = 2});
  for (int64_t step = 1; step <= 5; ++step) Save(store, step);
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000004", "step-00000005"));
}

TEST(CheckpointStore, KeepsOneAtLeast) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {.keep_last = 0});
  Save(store, 1);
  Save(store, 2);
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000002"));
}

TEST(CheckpointStore, KeepsTheBestBesides) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {.keep_last = 1, .keep_best = true});
  Save(store, 1, 3.0);
  Save(store, 2, 1.5);
  Save(store, 3, 2.0);
  Save(store, 4, std::numeric_limits<double>::quiet_NaN());
  Save(store, 5);
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000002", "step-00000005"));
  Save(store, 6, 1.0);
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000006"));
}

TEST(CheckpointStore, NeverRemovesWhatItJustSaved) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {.keep_last = 1});
  Save(store, 9);
  Save(store, 3);
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000003", "step-00000009"));
}

TEST(CheckpointStore, ATornOneDoesNotPushAWholeOneOut) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {.keep_last = 2});
  Save(store, 1);
  Save(store, 2);
  fs::remove(scratch.path() / "step-00000002" / "manifest.json");
  Save(store, 3);
  EXPECT_THAT(Names(scratch.path()),
              ElementsAre("step-00000001", "step-00000002", "step-00000003"));
}

TEST(CheckpointStore, ReplacesTheSameStep) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  Save(store, 4, std::nullopt, 1);
  Save(store, 4, std::nullopt, 2);
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000004"));
  EXPECT_TRUE(TestCheckpoint(4, 2).Equals(Newest(store)));
}

TEST(CheckpointStore, SaveRemovesLeftoversOfTornWritesAndNothingElse) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  WriteText(scratch.path() / ".step-00000009.tmp" / "trainables.safetensors", "torn");
  WriteText(scratch.path() / ".mine.tmp" / "file", "a person's");
  WriteText(scratch.path() / "notes.txt", "a person's");
  EXPECT_EQ(Newest(store).step, -1);
  Save(store, 1);
  EXPECT_THAT(Names(scratch.path()), ElementsAre(".mine.tmp", "notes.txt", "step-00000001"));
}

TEST(CheckpointStore, AFormerDirectoryStandsInWhereItsSuccessorNeverCame) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  Save(store, 1);
  Save(store, 2);
  const fs::path target = scratch.path() / "step-00000002";
  fs::rename(target, AtomicDirectory::FormerPath(target));
  EXPECT_TRUE(TestCheckpoint(2).Equals(Newest(store)));
  Save(store, 3);
  EXPECT_THAT(Names(scratch.path()), ElementsAre("step-00000002", "step-00000003"));
}

TEST(CheckpointStore, ADirectoryOfAnotherStepIsSkipped) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  Save(store, 1);
  fs::copy(scratch.path() / "step-00000001", scratch.path() / "step-00000008");
  std::vector<std::string> skipped;
  const auto loaded = store.LoadNewest(&skipped);
  ASSERT_TRUE(loaded.ok() && loaded->has_value());
  EXPECT_EQ((*loaded)->step, 1);
  EXPECT_THAT(skipped, ElementsAre(HasSubstr("manifest is of step 1")));
}

TEST(CheckpointStore, StepsBeyondEightDigitsStayInOrder) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  Save(store, 99999999);
  Save(store, 100000000);
  EXPECT_EQ(Newest(store).step, 100000000);
}

TEST(CheckpointStore, RefusesNamesThatLeaveTheDirectory) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path() / "checkpoints", {});
  for (const char* stem : {"", "../up", ".hidden", "a/b"}) {
    TestCheckpoint checkpoint(1);
    checkpoint.contents().tensors[stem] = {};
    EXPECT_EQ(store.Save(checkpoint.contents()).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  TestCheckpoint negative(-1);
  EXPECT_EQ(store.Save(negative.contents()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Names(scratch.path()), IsEmpty());
}

TEST(CheckpointStore, ClearRemovesEveryCheckpoint) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {.keep_last = 5});
  Save(store, 1);
  Save(store, 2);
  WriteText(scratch.path() / "step-00000003" / "state.json", "torn");
  WriteText(scratch.path() / ".step-00000004.tmp" / "state.json", "torn");
  WriteText(scratch.path() / "notes.txt", "a person's");
  ASSERT_TRUE(store.Clear().ok());
  EXPECT_THAT(Names(scratch.path()), ElementsAre("notes.txt"));
}

}  // namespace
}  // namespace lemo::train
