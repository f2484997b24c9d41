// The loop around the core: groups, failures, limits, the end.
#include "coordinator/runtime/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "tests/support/file_size_limit.h"
#include "tests/unit/runtime/kept.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;

// What the loop thread would set going. Can hold it up in the first validation.
class FakeServices final : public Services {
 public:
  void StartValidation(const JobRecord& record) override {
    std::unique_lock lock(mutex_);
    validations_.push_back(record.job.name());
    changed_.notify_all();
    changed_.wait(lock, [this] { return !holding_; });
  }
  void StopValidation(const std::string&) override {}
  void AppendLog(const std::string&, const lemo::v1::LogChunk&) override {}
  void DropContent(const std::vector<std::string>&) override {}

  void Hold() {
    const std::lock_guard lock(mutex_);
    holding_ = true;
  }
  void Release() {
    const std::lock_guard lock(mutex_);
    holding_ = false;
    changed_.notify_all();
  }
  void AwaitValidations(size_t count) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(30),
                                  [&] { return validations_.size() >= count; }));
  }
  std::vector<std::string> validations() {
    const std::lock_guard lock(mutex_);
    return validations_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> validations_;
  bool holding_ = false;
};

class FakeLink final : public AgentLink {
 public:
  void Send(const lemo::v1::CoordinatorMessage& message) override {
    const std::lock_guard lock(mutex_);
    sent_.push_back(message);
  }
  void Close(const absl::Status& reason) override {
    const std::lock_guard lock(mutex_);
    if (closed_.ok()) closed_ = reason;
  }
  size_t sent() {
    const std::lock_guard lock(mutex_);
    return sent_.size();
  }
  absl::Status closed() {
    const std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  std::mutex mutex_;
  std::vector<lemo::v1::CoordinatorMessage> sent_;
  absl::Status closed_;
};

class Commits final : public CommitObserver {
 public:
  void OnCommit(const std::vector<Effect>& effects, absl::Duration, const absl::Status&) override {
    const std::lock_guard lock(mutex_);
    sizes_.push_back(std::count_if(effects.begin(), effects.end(), [](const Effect& effect) {
      return std::holds_alternative<Persist>(effect);
    }));
  }
  int64_t largest() {
    const std::lock_guard lock(mutex_);
    return *std::max_element(sizes_.begin(), sizes_.end());
  }

 private:
  std::mutex mutex_;
  std::vector<int64_t> sizes_;
};

class ClusterTest : public testing::Test {
 protected:
  ~ClusterTest() override { services_.Release(); }

  void Start() {
    cluster_.reset();
    auto cluster = Cluster::Start({}, store_.get(), &hub_, &services_, &commits_);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
  }
  static JobRecord Record(const std::string& id, const std::string& request = "",
                          const std::string& hash = "") {
    JobRecord record;
    record.job.set_name("jobs/" + id);
    record.job.mutable_create_time()->set_seconds(1);
    record.request_id = request;
    record.request_hash = hash;
    return record;
  }
  // The loop stands still in the validation of this job, with nothing in the queue.
  void HoldUpTheLoop() {
    services_.Hold();
    const size_t before = services_.validations().size();
    ASSERT_TRUE(cluster_->Submit(Record("hold")).ok());
    services_.AwaitValidations(before + 1);
  }
  size_t Waiting() { return cluster_->State().waiting_events; }

  ScratchDir scratch_;
  std::unique_ptr<Store> store_ = MustOpen(scratch_ / "db");
  WatchHub hub_{store_.get()};
  FakeServices services_;
  Commits commits_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(ClusterTest, AnAnswerFollowsTheCommit) {
  Start();
  const auto job = cluster_->Submit(Record("a"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), Job::VALIDATING);
  std::promise<Job::State> seen;
  cluster_->Post(CancelRequested{"jobs/a"}, [&](const absl::Status& status) {
    EXPECT_TRUE(status.ok()) << status;
    seen.set_value(store_->GetJob("jobs/a")->state());
  });
  EXPECT_EQ(seen.get_future().get(), Job::CANCELLED);
  EXPECT_EQ(cluster_->Do(CancelRequested{"jobs/none"}).code(), absl::StatusCode::kNotFound);
}

TEST_F(ClusterTest, WhatComesDuringACommitIsCommittedTogether) {
  Start();
  HoldUpTheLoop();
  std::vector<std::thread> callers;
  std::atomic<int> made = 0;
  for (int i = 0; i < 40; ++i) {
    callers.emplace_back([&, i] { made += cluster_->Submit(Record(absl::StrCat("j", i))).ok(); });
  }
  ASSERT_TRUE(Comes([&] { return Waiting() == 40; }));
  services_.Release();
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(made, 40);
  EXPECT_EQ(commits_.largest(), 40);
  std::set<int64_t> numbers;
  const auto active = store_->ActiveJobs();
  for (const JobRecord& record : *active) numbers.insert(record.number);
  EXPECT_EQ(numbers.size(), 41);
  EXPECT_EQ(*numbers.rbegin(), 41);
}

TEST_F(ClusterTest, ARepeatedRequestIsAnsweredWithinAGroupAndLater) {
  Start();
  HoldUpTheLoop();
  std::vector<std::future<absl::StatusOr<Job>>> answers;
  for (const char* id : {"a", "b", "c"}) {
    const std::string hash = std::string(id) == "c" ? "other" : "same";
    answers.push_back(std::async(std::launch::async, [this, id, hash, before = answers.size()] {
      // In this order into the queue.
      EXPECT_TRUE(Comes([&] { return Waiting() == before; }));
      return cluster_->Submit(Record(id, "request", hash));
    }));
  }
  ASSERT_TRUE(Comes([&] { return Waiting() == 3; }));
  services_.Release();
  EXPECT_EQ(answers[0].get()->name(), "jobs/a");
  EXPECT_EQ(answers[1].get()->name(), "jobs/a");
  const absl::Status other = answers[2].get().status();
  EXPECT_EQ(other.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(other.message()), testing::HasSubstr("jobs/a"));
  Start();
  EXPECT_EQ(cluster_->Submit(Record("d", "request", "same"))->name(), "jobs/a");
  EXPECT_EQ(cluster_->Submit(Record("e", "request", "other")).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_->ActiveJobs()->size(), 2);
}

TEST_F(ClusterTest, AFullQueueRefusesAtOnce) {
  Start();
  HoldUpTheLoop();
  std::atomic<int> taken = 0, refused = 0;
  for (int i = 0; i < 20'100; ++i) {
    cluster_->Post(CordonRequested{"workers/none", false}, [&](const absl::Status& status) {
      ++(absl::IsResourceExhausted(status) ? refused : taken);
    });
  }
  EXPECT_EQ(refused, 100);
  services_.Release();
  EXPECT_TRUE(Comes([&] { return taken == 20'000; }));
  EXPECT_TRUE(cluster_->Submit(Record("after")).ok());
}

TEST_F(ClusterTest, AFailedCommitIsForgottenAndTheClusterGoesOn) {
  Start();
  ASSERT_TRUE(cluster_->Submit(Record("before", "r1", "h")).ok());
  const auto link = std::make_shared<FakeLink>();
  lemo::v1::Hello hello;
  hello.set_worker("workers/a");
  cluster_->OpenSession(link, hello);
  ASSERT_TRUE(Comes([&] { return link->sent() == 1; }));
  {
    const FileSizeLimit full(1);
    for (const char* id : {"x", "y"}) {
      const absl::Status status = cluster_->Submit(Record(id, "r2", "h")).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    }
  }
  // The agent has to dial anew: what it was told and what is stored may differ.
  EXPECT_TRUE(Comes([&] { return absl::IsUnavailable(link->closed()); }));
  const auto again = cluster_->Submit(Record("z", "r2", "h"));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->name(), "jobs/z");
  EXPECT_EQ(cluster_->Submit(Record("q", "r1", "h"))->name(), "jobs/before");
  EXPECT_TRUE(absl::IsNotFound(store_->GetJob("jobs/x").status()));
  EXPECT_TRUE(cluster_->Do(CancelRequested{"jobs/before"}).ok());
  EXPECT_EQ(store_->Events("jobs/before", 0, 10)->size(), 2);
}

TEST_F(ClusterTest, WhatWasTakenIsDurableAtTheEnd) {
  Start();
  std::atomic<int> done = 0;
  for (int i = 0; i < 100; ++i) {
    JobRecord record = Record(absl::StrCat("j", i));
    record.number = i + 1;
    cluster_->Post(Submitted{record}, [&](const absl::Status& status) { done += status.ok(); });
  }
  cluster_->Stop();
  EXPECT_EQ(done, 100);
  EXPECT_EQ(store_->ActiveJobs()->size(), 100);
  EXPECT_EQ(cluster_->Submit(Record("late")).status().code(), absl::StatusCode::kUnavailable);
  absl::Status late;
  cluster_->Post(Tick{}, [&](const absl::Status& status) { late = status; });
  EXPECT_EQ(late.code(), absl::StatusCode::kUnavailable);
}

TEST_F(ClusterTest, TheEndClosesTheAgentsStreams) {
  Start();
  const auto link = std::make_shared<FakeLink>();
  lemo::v1::Hello hello;
  hello.set_worker("workers/a");
  const int64_t session = cluster_->OpenSession(link, hello);
  cluster_->Stop();
  EXPECT_TRUE(absl::IsUnavailable(link->closed()));
  cluster_->CloseSession(session);
}

TEST_F(ClusterTest, ARestartTakesUpWhatWasThere) {
  Start();
  for (const char* id : {"a", "b"}) ASSERT_TRUE(cluster_->Submit(Record(id)).ok());
  ASSERT_TRUE(cluster_->Do(Validated{"jobs/b", std::nullopt, 0}).ok());
  services_.AwaitValidations(2);
  Start();
  EXPECT_THAT(services_.validations(), testing::ElementsAre("jobs/a", "jobs/b", "jobs/a"));
  ASSERT_EQ(cluster_->Queue().size(), 1);
  EXPECT_EQ(cluster_->Queue()[0].job.name(), "jobs/b");
  const auto next = cluster_->Submit(Record("c"));
  EXPECT_EQ(*store_->LastNumber(), 3) << "numbers go on";
}

TEST_F(ClusterTest, AnswersWhoMayUpload) {
  Start();
  ASSERT_TRUE(cluster_->Submit(Record("a")).ok());
  lemo::v1::AttemptId id;
  id.set_job("jobs/a");
  EXPECT_TRUE(cluster_->IsCurrent(id));
  id.set_attempt(1);
  EXPECT_FALSE(cluster_->IsCurrent(id));
  id.set_job("jobs/none");
  EXPECT_FALSE(cluster_->IsCurrent(id));
}

}  // namespace
}  // namespace lemo::coordinator
