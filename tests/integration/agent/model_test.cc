// Models: used where the coordinator has them, or fetched.
#include "worker/agent/model_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "nlohmann/json.hpp"
#include "tests/integration/agent/harness.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;
using lemo::v1::AttemptEnded;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kFinish[] = "spec\npublish\nresult\n";
constexpr char kModel[] = "models/big";

class Model : public AgentTest {
 protected:
  AgentOptions Options() const override {
    AgentOptions options = AgentTest::Options();
    options.model_roots.clear();
    return options;
  }

  const std::map<std::string, std::string> files_ = {
      {"config.json", "{}"},
      {"additional_chat_templates/tools.jinja", "{{ messages }}"},
      {"model.safetensors", std::string(50'000, 'm')},
  };

  lemo::v1::Assignment MakeAssignment(const std::string& id, const std::string& script = kFinish) {
    lemo::v1::Assignment assignment = AgentTest::MakeAssignment(id, script);
    assignment.mutable_run()->mutable_model()->set_path(kModel);
    assignment.set_model_path(There().string());
    assignment.set_model_fingerprint(Sha256Hex("big"));
    for (const auto& [path, bytes] : files_) {
      *assignment.add_model_files() = coordinator_.AddModelFile(kModel, path, bytes);
    }
    return assignment;
  }

  // Where the coordinator has the model, and where this machine may have it.
  fs::path There() const { return directory_ / "there"; }
  void PutThere() const {
    for (const auto& [path, bytes] : files_) {
      fs::create_directories((There() / path).parent_path());
      std::ofstream(There() / path) << bytes;
      fs::last_write_time(There() / path, fs::file_time_type::clock::now() - std::chrono::hours(1));
    }
  }
  fs::path Fetched() const { return directory_ / "agent" / "models" / Sha256Hex("big"); }

  // The end of the job's first attempt.
  AttemptEnded Run(const lemo::v1::Assignment& assignment) {
    coordinator_.Assign(assignment);
    EXPECT_TRUE(coordinator_.WaitForEnd({assignment.id().job(), 1}));
    return coordinator_.Get({assignment.id().job(), 1}).ended.value_or(AttemptEnded());
  }
  AttemptEnded RunNew(const std::string& id) { return Run(MakeAssignment(id)); }
  // What the rank of a job was given, which it is not told by that path.
  int model_calls() const { return coordinator_.download_calls() - files_fetched_; }

  void ExpectFetched() const {
    for (const auto& [path, bytes] : files_) {
      EXPECT_EQ(ReadFile(Fetched() / path).value_or("none"), bytes) << path;
    }
  }

  int files_fetched_ = 1;  // the script of a job; those of several jobs are the same file
};

TEST_F(Model, IsFetchedWhenItIsNotHere) {
  StartAgent();
  EXPECT_EQ(RunNew("a").outcome(), AttemptEnded::SUCCEEDED);
  ExpectFetched();
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  // The rank had a path of this machine, which nobody is told.
  const auto spec = nlohmann::json::parse(attempt.events.at(0).phase().detail());
  EXPECT_EQ(spec["model"]["path"], kModel);
  EXPECT_EQ(model_calls(), 3);
  // Once.
  EXPECT_EQ(RunNew("b").outcome(), AttemptEnded::SUCCEEDED);
  EXPECT_EQ(model_calls(), 3);
}

TEST_F(Model, IsUsedInPlaceWhenItIsTheSame) {
  PutThere();
  StartAgent();
  EXPECT_EQ(RunNew("a").outcome(), AttemptEnded::SUCCEEDED);
  EXPECT_EQ(model_calls(), 0);
  EXPECT_FALSE(fs::exists(Fetched()));
}

TEST_F(Model, OtherContentsAtTheSamePathAreNotUsed) {
  PutThere();
  const fs::path weights = There() / "model.safetensors";
  std::string bytes = files_.at("model.safetensors");
  bytes[7] = 'x';
  std::ofstream(weights) << bytes;
  StartAgent();
  EXPECT_EQ(RunNew("a").outcome(), AttemptEnded::SUCCEEDED);
  EXPECT_EQ(model_calls(), 3);
  ExpectFetched();
  EXPECT_EQ(ReadFile(weights).value_or(""), bytes);
}

TEST_F(Model, AFileMoreMakesItAnotherModel) {
  PutThere();
  std::ofstream(There() / "chat_template.jinja") << "{{ other }}";
  StartAgent();
  EXPECT_EQ(RunNew("a").outcome(), AttemptEnded::SUCCEEDED);
  ExpectFetched();
}

TEST_F(Model, IsReadOnceInTheLivesOfSeveralAgents) {
  PutThere();
  StartAgent();
  EXPECT_EQ(RunNew("a").outcome(), AttemptEnded::SUCCEEDED);
  StopAgent();
  // Behind the agent's back, in a way that only reading would show.
  const fs::path weights = There() / "model.safetensors";
  const auto written = fs::last_write_time(weights);
  std::ofstream(weights) << std::string(50'000, 'x');
  fs::last_write_time(weights, written);
  StartAgent();
  EXPECT_EQ(RunNew("b").outcome(), AttemptEnded::SUCCEEDED);
  EXPECT_EQ(model_calls(), 0);
}

TEST_F(Model, ADownloadThatBrokeOffGoesOn) {
  StartAgent();
  lemo::v1::Assignment assignment = MakeAssignment("a");
  coordinator_.Set([](auto* manners) { manners->cut_downloads = 3; });
  EXPECT_EQ(Run(assignment).outcome(), AttemptEnded::SUCCEEDED);
  ExpectFetched();
  // The script, and the first two files, were cut once each.
  EXPECT_EQ(coordinator_.download_calls(), 4 + 3);
}

TEST_F(Model, WhatIsThereOfAnEarlierAgentIsGoneOnWith) {
  fs::create_directories(Fetched());
  std::ofstream(Fetched() / "model.safetensors.part") << std::string(20'000, 'm');
  std::ofstream(Fetched() / "config.json") << "[]";  // not what it should be
  StartAgent();
  EXPECT_EQ(RunNew("a").outcome(), AttemptEnded::SUCCEEDED);
  ExpectFetched();
}

TEST_F(Model, WrongBytesAreRefused) {
  StartAgent();
  const lemo::v1::Assignment assignment = MakeAssignment("a");
  coordinator_.ReplaceFile(std::string(kModel) + "/model.safetensors", std::string(50'000, 'x'));
  const AttemptEnded ended = Run(assignment);
  EXPECT_EQ(ended.outcome(), AttemptEnded::FAILED);
  EXPECT_EQ(ended.failure().kind(), lemo::v1::Failure::SYSTEM_ERROR);
  EXPECT_THAT(ended.failure().message(), HasSubstr("models/big/model.safetensors: got 50000"));
  EXPECT_FALSE(fs::exists(Fetched() / "model.safetensors"));
  EXPECT_EQ(coordinator_.Get({"jobs/a", 1}).started, 0);
}

TEST_F(Model, NamesThatLeaveTheDirectoryAreRefused) {
  StartAgent();
  int number = 0;
  for (const char* path : {"../x", "/etc/passwd", "a/../x", "", ".hidden", "a/b/c"}) {
    lemo::v1::Assignment assignment = MakeAssignment(absl::StrCat("p", ++number));
    assignment.mutable_model_files(0)->set_path(path);
    EXPECT_THAT(Run(assignment).failure().message(), HasSubstr("model_files")) << path;
  }
  lemo::v1::Assignment assignment = MakeAssignment("f");
  assignment.set_model_fingerprint("../../x");
  EXPECT_THAT(Run(assignment).failure().message(), HasSubstr("model_fingerprint"));
}

TEST_F(Model, TwoJobsFetchItOnce) {
  StartAgent();
  lemo::v1::Assignment first = MakeAssignment("a");
  lemo::v1::Assignment second = MakeAssignment("b");
  coordinator_.Assign(first);
  coordinator_.Assign(second);
  for (const char* job : {"jobs/a", "jobs/b"}) {
    ASSERT_TRUE(coordinator_.WaitForEnd({job, 1}));
    EXPECT_EQ(coordinator_.Get({job, 1}).ended->outcome(), AttemptEnded::SUCCEEDED);
  }
  EXPECT_EQ(model_calls(), 3);
}

TEST_F(Model, ACancelledJobEndsItsFetching) {
  coordinator_.Set([](auto* manners) { manners->stall_models = true; });
  StartAgent();
  const lemo::v1::Assignment assignment = MakeAssignment("a");
  coordinator_.Assign(assignment);
  coordinator_.WaitForDownloads(2);
  coordinator_.Signal(assignment.id(), lemo::v1::AttemptSignal::KILL);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_EQ(coordinator_.Get({"jobs/a", 1}).ended->outcome(), AttemptEnded::STOPPED);
}

// The cache by itself, on a disk whose size the test sets.
class ModelRoom : public Model {
 protected:
  static constexpr int64_t kReserve = int64_t{2} << 30;

  ModelRoom() { fs::create_directories(Cache()); }
  fs::path Cache() const { return directory_ / "cache"; }

  // A model of one file of 10 bytes.
  lemo::v1::Assignment Small(const std::string& name) {
    lemo::v1::Assignment assignment;
    assignment.mutable_run()->mutable_model()->set_path("models/" + name);
    assignment.set_model_fingerprint(Sha256Hex(name));
    *assignment.add_model_files() =
        coordinator_.AddModelFile("models/" + name, "config.json", "0123456789");
    return assignment;
  }
  std::vector<std::string> Kept() const {
    std::vector<std::string> kept;
    for (const char* name : {"a", "b", "c", "d"}) {
      if (fs::exists(Cache() / Sha256Hex(name))) kept.push_back(name);
    }
    return kept;
  }
  void Age(const std::string& name, int hours) const {
    fs::last_write_time(Cache() / Sha256Hex(name),
                        fs::file_time_type::clock::now() - std::chrono::hours(hours));
  }

  // Room for `models` of 10 bytes beside the reserve.
  ModelCache::MeasureSpace RoomFor(int models) const {
    return [this, models](const fs::path&) {
      const auto used = static_cast<int64_t>(Kept().size());
      // The one that is being fetched has its directory only when there is room for it.
      return ModelCache::Space{.bytes = kReserve * 1000, .free = kReserve + 10 * (models - used)};
    };
  }

  Canceller canceller_;
};

TEST_F(ModelRoom, TheOnesNotUsedForLongestGoFirst) {
  ModelCache cache(Cache(), Dial(coordinator_.address()), RoomFor(3));
  for (const char* name : {"a", "b", "c"}) {
    ASSERT_TRUE(cache.Prepare(Small(name), &canceller_).ok()) << name;
  }
  Age("a", 3);
  Age("b", 5);
  Age("c", 4);
  EXPECT_THAT(Kept(), ElementsAre("a", "b", "c"));
  ASSERT_TRUE(cache.Prepare(Small("d"), &canceller_).ok());
  EXPECT_THAT(Kept(), ElementsAre("a", "c", "d"));
  // To be used again counts.
  ASSERT_TRUE(cache.Prepare(Small("c"), &canceller_).ok());
  ASSERT_TRUE(cache.Prepare(Small("b"), &canceller_).ok());
  EXPECT_THAT(Kept(), ElementsAre("b", "c", "d"));
}

TEST_F(ModelRoom, WhatIsInUseStays) {
  ModelCache cache(Cache(), Dial(coordinator_.address()), RoomFor(2));
  const auto a = cache.Prepare(Small("a"), &canceller_);
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(cache.Prepare(Small("b"), &canceller_).ok());
  Age("a", 9);
  auto c = cache.Prepare(Small("c"), &canceller_);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_THAT(Kept(), ElementsAre("a", "c"));
  // All are in use: the reserve is taken into account no more.
  ASSERT_TRUE(cache.Prepare(Small("d"), &canceller_).ok());
  EXPECT_THAT(Kept(), ElementsAre("a", "c", "d"));
}

TEST_F(ModelRoom, AModelThatFitsNowhereIsRefusedBeforeTheDiskIsFull) {
  ModelCache cache(Cache(), Dial(coordinator_.address()),
                   [](const fs::path&) { return ModelCache::Space{.bytes = 1000, .free = 9}; });
  const auto refused = cache.Prepare(Small("a"), &canceller_);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("GiB left"));
  EXPECT_EQ(coordinator_.download_calls(), 0);
}

}  // namespace
}  // namespace lemo::agent
