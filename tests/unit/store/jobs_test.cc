// Apply and what is read back of jobs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(Jobs, ARecordComesBackWithAllItsParts) {
  const ScratchDir scratch;
  JobRecord record = SampleJob(7, Job::QUEUED);
  record.job.mutable_spec()->mutable_run()->mutable_model()->set_path("x");
  record.job.mutable_contract()->set_memory_bytes(int64_t{3} << 30);
  record.job.mutable_contract()->mutable_offer()->set_id("0123456789abcdef");
  record.attempt_sequence = 12;
  record.not_before = absl::FromUnixNanos(1'700'000'000'123'456'789);
  record.run_seconds_used = 0.1;
  record.running_since = absl::FromUnixSeconds(1'700'000'001);
  for (const char* name : {"files/a", "files/b"}) {
    lemo::v1::InputFile& file = record.files.emplace_back();
    file.set_name(name);
    file.set_bytes(int64_t{5} << 40);
    file.set_sha256(std::string(64, 'a'));
  }
  record.files.emplace_back();  // an empty message has no bytes, but is one
  record.model_path = "/models/\xff not UTF-8";
  record.model_fingerprint = "f";
  for (const char* path : {"config.json", "model.safetensors"}) {
    lemo::v1::ModelFile& file = record.model_files.emplace_back();
    file.set_path(path);
    file.set_bytes(int64_t{16} << 30);
  }
  record.devices = {0, 3};
  record.request_id = "r";
  record.request_hash = "h";
  {
    const auto store = MustOpen(scratch / "db");
    ASSERT_TRUE(Put(*store, record).ok());
  }
  const auto store = MustOpen(scratch / "db");
  const auto active = store->ActiveJobs();
  ASSERT_TRUE(active.ok()) << active.status();
  ASSERT_EQ(active->size(), 1);
  const JobRecord& back = active->front();
  EXPECT_EQ(back.job.SerializeAsString(), record.job.SerializeAsString());
  EXPECT_EQ(back.job.contract().memory_bytes(), int64_t{3} << 30);
  EXPECT_EQ(back.number, 7);
  EXPECT_EQ(back.attempt_sequence, 12);
  EXPECT_EQ(back.not_before, record.not_before);
  EXPECT_EQ(back.queued_time, absl::InfinitePast());
  EXPECT_EQ(back.run_seconds_used, 0.1);
  EXPECT_EQ(back.running_since, record.running_since);
  ASSERT_EQ(back.files.size(), 3);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(back.files[i].SerializeAsString(), record.files[i].SerializeAsString());
  }
  EXPECT_EQ(back.model_path, record.model_path);
  EXPECT_EQ(back.model_fingerprint, "f");
  ASSERT_EQ(back.model_files.size(), 2);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(back.model_files[i].SerializeAsString(), record.model_files[i].SerializeAsString());
  }
  EXPECT_THAT(back.devices, ElementsAre(0, 3));
  EXPECT_EQ(back.request_id, "r");
  EXPECT_EQ(back.request_hash, "h");
}

TEST(Jobs, ActiveAreThoseThatHaveNotEndedByNumber) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  std::vector<Effect> effects;
  // Later numbers are in earlier states, so an order by state would show.
  for (int state = 1; state <= Job::State_MAX; ++state) {
    effects.push_back(Persist{SampleJob(10 - state, static_cast<Job::State>(state)), {}});
  }
  ASSERT_TRUE(store->Apply(effects).ok());
  std::vector<int64_t> numbers;
  const auto active = store->ActiveJobs();
  for (const JobRecord& record : *active) numbers.push_back(record.number);
  EXPECT_THAT(numbers, ElementsAre(4, 5, 6, 7, 8, 9));
  EXPECT_EQ(*store->LastNumber(), 9);
}

TEST(Jobs, EventsFollowOneAnother) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  EXPECT_EQ(*store->LastNumber(), 0);
  JobRecord record = SampleJob(1);
  const auto first = NextEvent(&record, "first"), second = NextEvent(&record, "second");
  ASSERT_TRUE(Put(*store, record, {first, second}).ok());
  const auto third = NextEvent(&record, "third");
  ASSERT_TRUE(Put(*store, record, {third}).ok());
  const auto reasons = [&](int64_t after, int limit) {
    std::vector<std::string> all;
    const auto events = store->Events(JobName(1), after, limit);
    EXPECT_TRUE(events.ok()) << events.status();
    for (const auto& event : *events) all.push_back(event.state().reason());
    return all;
  };
  EXPECT_THAT(reasons(0, 100), ElementsAre("first", "second", "third"));
  EXPECT_THAT(reasons(1, 1), ElementsAre("second"));
  EXPECT_THAT(reasons(3, 100), IsEmpty());
  EXPECT_TRUE(Put(*store, record, {second, third}).ok()) << "the same again changes nothing";
  EXPECT_THAT(reasons(0, 100), ElementsAre("first", "second", "third"));
}

TEST(Jobs, AnEventIsNeverReplacedAndLeavesNoGap) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  JobRecord record = SampleJob(1);
  ASSERT_TRUE(Put(*store, record, {NextEvent(&record, "first")}).ok());
  JobRecord changed = record;
  changed.job.set_reason("changed");
  auto other = NextEvent(&changed, "other");
  other.set_sequence(1);
  const absl::Status replaced = Put(*store, changed, {other});
  EXPECT_EQ(replaced.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(replaced), HasSubstr("jobs/j1: event 1"));
  other.set_sequence(3);
  EXPECT_EQ(Put(*store, changed, {other}).code(), absl::StatusCode::kInternal);
  other.set_sequence(0);
  EXPECT_EQ(Put(*store, changed, {other}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(store->GetJob(JobName(1))->reason(), "") << "nothing of a refused call is stored";
  EXPECT_EQ(store->Events(JobName(1), 0, 10)->size(), 1);
}

TEST(Jobs, OneCallIsOneTransaction) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  ASSERT_TRUE(Put(*store, SampleJob(1)).ok());
  JobRecord thief = SampleJob(1);
  thief.job.set_name("jobs/thief");
  const absl::Status status = store->Apply(
      {Persist{SampleJob(2), {}}, PersistWorker{"workers/w", true}, Persist{thief, {}}});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(status), HasSubstr("the number 1 is taken by jobs/j1"));
  EXPECT_TRUE(absl::IsNotFound(store->GetJob(JobName(2)).status()));
  EXPECT_THAT(*store->CordonedWorkers(), IsEmpty());
}

TEST(Jobs, ErrorsNameTheJob) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  EXPECT_EQ(store->GetJob("jobs/abc").status(), absl::NotFoundError("jobs/abc: no such job"));
  EXPECT_EQ(store->Events("jobs/abc", 0, 1).status(), absl::NotFoundError("jobs/abc: no such job"));
}

TEST(Jobs, ARequestIdBelongsToTheJobThatTookIt) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  JobRecord record = SampleJob(1);
  record.request_id = "id";
  record.request_hash = "hash";
  ASSERT_TRUE(Put(*store, record).ok());
  ASSERT_TRUE(Put(*store, record).ok()) << "a later change of the same job";
  JobRecord other = SampleJob(2);
  other.request_id = "id";
  EXPECT_EQ(Put(*store, other, {NextEvent(&other, "x")}).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(absl::IsNotFound(store->GetJob(JobName(2)).status()));
  const auto found = store->FindRequest("id");
  ASSERT_TRUE(found.ok() && found->has_value());
  EXPECT_EQ((*found)->job, JobName(1));
  EXPECT_EQ((*found)->request_hash, "hash");
  EXPECT_EQ(*store->FindRequest("other"), std::nullopt);
  EXPECT_TRUE(Put(*store, SampleJob(3)).ok() && Put(*store, SampleJob(4)).ok()) << "no id is no id";
}

TEST(Jobs, CordonsComeAndGo) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  ASSERT_TRUE(store
                  ->Apply({PersistWorker{"workers/a", true}, PersistWorker{"workers/b", true},
                           PersistWorker{"workers/a", false}, PersistWorker{"workers/b", true}})
                  .ok());
  EXPECT_THAT(*store->CordonedWorkers(), ElementsAre("workers/b"));
}

// A job that succeeded by contract leaves what it took, in the transaction that ends it.
TEST(RunTimes, AreOfJobsThatSucceededByContractNewestFirst) {
  const ScratchDir scratch;
  const auto finish = [](int64_t number, const std::string& shape, Job::State state) {
    JobRecord record = SampleJob(number, state);
    lemo::v1::RunForecast& foretold =
        *record.job.mutable_contract()->mutable_offer()->mutable_forecast();
    foretold.set_shape_class(shape);
    foretold.set_predicted_step_seconds(1);
    record.job.mutable_result()->mutable_forecast()->set_measured_step_seconds(
        static_cast<double>(number));
    return record;
  };
  const auto jobs = [](const absl::StatusOr<std::vector<lemo::v1::RunTime>>& runs) {
    std::vector<std::string> names;
    for (const lemo::v1::RunTime& run : *runs) names.push_back(run.job());
    return names;
  };
  {
    const auto store = MustOpen(scratch / "db");
    EXPECT_THAT(jobs(store->RunTimes(2, 10)), IsEmpty());
    for (int64_t number = 1; number <= 4; ++number) {
      ASSERT_TRUE(Put(*store, finish(number, "a", Job::SUCCEEDED)).ok());
    }
    ASSERT_TRUE(Put(*store, finish(5, "a", Job::FAILED)).ok());
    ASSERT_TRUE(Put(*store, SampleJob(6, Job::SUCCEEDED)).ok());
    ASSERT_TRUE(Put(*store, finish(7, "b", Job::SUCCEEDED)).ok());
    // Told again, it is still one run.
    ASSERT_TRUE(Put(*store, finish(7, "b", Job::SUCCEEDED)).ok());
  }
  const auto store = MustOpen(scratch / "db");
  EXPECT_THAT(jobs(store->RunTimes(2, 10)), ElementsAre("jobs/j7", "jobs/j4", "jobs/j3"));
  EXPECT_THAT(jobs(store->RunTimes(1, 10)), ElementsAre("jobs/j7", "jobs/j4"));
  EXPECT_THAT(jobs(store->RunTimes(2, 2)), ElementsAre("jobs/j7", "jobs/j4"));
  EXPECT_EQ((*store->RunTimes(2, 2))[1].forecast().measured_step_seconds(), 4);
}

}  // namespace
}  // namespace lemo::coordinator
