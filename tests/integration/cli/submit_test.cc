// lemo job submit: local files and models go along, and nothing happens twice.
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/integration/cli/run_lemo.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class SubmitTest : public CliTest {
 protected:
  void SetUp() override {
    Write("rows.jsonl", "{\"text\": \"a\"}\n");
    Write("models/tiny/config.json", "{}");
    Write("job.yaml",
          "run:\n"
          "  model: {path: models/tiny}\n"
          "  data:\n"
          "    train: [{path: rows.jsonl}, {path: files/known}]\n"
          "    eval: [{path: rows.jsonl}]\n"
          "  train: {steps: 2}\n");
  }
};

TEST_F(SubmitTest, SendsWhatTheSpecNamesAndPutsTheNamesIn) {
  const Outcome submitted =
      Run({"job", "submit", "job.yaml", "--name", "mine", "--set", "run.train.steps=3"});
  EXPECT_EQ(submitted.code, 0) << submitted.err;
  EXPECT_EQ(submitted.out, "jobs/a\n");
  EXPECT_THAT(submitted.err, HasSubstr("rows.jsonl is files/f1"));
  ASSERT_THAT(state_.submits, SizeIs(1));
  const lemo::v1::JobSpec& spec = state_.submits[0].spec();
  EXPECT_EQ(spec.display_name(), "mine");
  EXPECT_EQ(spec.run().train().steps(), 3);
  EXPECT_EQ(spec.run().data().train(0).path(), "files/f1");
  EXPECT_EQ(spec.run().data().train(1).path(), "files/known");
  EXPECT_EQ(spec.run().data().eval(0).path(), "files/f1");
  EXPECT_EQ(spec.run().model().path(), "models/tiny");
  EXPECT_EQ(state_.models.at("tiny"), fs::canonical(directory_ / "models/tiny").string());
  EXPECT_THAT(state_.submits[0].request_id(), SizeIs(36));

  // The same contents do not travel again, the same model is not registered twice.
  EXPECT_EQ(Run({"job", "submit", "job.yaml"}).code, 0);
  EXPECT_THAT(state_.upload_starts, SizeIs(1));
  EXPECT_THAT(state_.models, SizeIs(1));
  EXPECT_NE(state_.submits[0].request_id(), state_.submits[1].request_id());
}

TEST_F(SubmitTest, AModelNameOfAnotherDirectoryGetsASuffix) {
  state_.models["tiny"] = "/elsewhere/tiny";
  EXPECT_EQ(Run({"job", "submit", "job.yaml"}).code, 0);
  EXPECT_EQ(state_.submits.at(0).spec().run().model().path(), "models/tiny-2");
}

TEST_F(SubmitTest, TriesAgainWithTheSameRequestId) {
  state_.unavailable_submits = 2;
  const Outcome submitted = Run({"job", "submit", "job.yaml", "-o", "json"});
  EXPECT_EQ(submitted.code, 0) << submitted.err;
  ASSERT_THAT(state_.submits, SizeIs(3));
  EXPECT_EQ(state_.submits[0].request_id(), state_.submits[2].request_id());
  EXPECT_THAT(submitted.out,
              AllOf(HasSubstr("\"name\": \"jobs/a\""), HasSubstr("\"state\": \"VALIDATING\"")));
}

TEST_F(SubmitTest, AnUploadGoesOnWhereItBroke) {
  const std::string rows(1 << 20, 'r');
  Write("rows.jsonl", rows);
  state_.break_upload_after = 300'000;
  const Outcome put = Run({"file", "put", "rows.jsonl"});
  EXPECT_EQ(put.code, 0) << put.err;
  ASSERT_THAT(state_.uploaded_from, SizeIs(2));
  EXPECT_EQ(state_.uploaded_from[0], 0);
  EXPECT_GE(state_.uploaded_from[1], 300'000);
  EXPECT_EQ(state_.upload_starts[0].upload_id(), state_.upload_starts[1].upload_id());
  EXPECT_EQ(state_.uploads[state_.upload_starts[0].upload_id()], rows);
}

TEST_F(SubmitTest, ReportsEveryFaultOfTheFileAndSendsNothing) {
  Write("bad.yaml",
        "run:\n  model: {path: nowhere}\n  data:\n    train: [{path: missing.txt}]\n"
        "  train: {step: 1}\n");
  const Outcome submitted = Run({"job", "submit", "bad.yaml"});
  EXPECT_EQ(submitted.code, 2);
  EXPECT_EQ(submitted.out, "");
  EXPECT_THAT(
      submitted.err,
      AllOf(HasSubstr("run.train.step: bad.yaml:5: unknown field; did you mean run.train.steps?"),
            HasSubstr("run.data.train[0].path: there is no file missing.txt here"),
            HasSubstr("run.model.path: there is no directory nowhere here")));
  EXPECT_THAT(state_.submits, IsEmpty());
  EXPECT_THAT(state_.upload_starts, IsEmpty());
}

TEST_F(SubmitTest, ReportsEveryFaultThatTheServiceFinds) {
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field("run.train.steps");
  violation->set_description("must be positive");
  violation = bad_request.add_field_violations();
  violation->set_field("resources.ranks");
  violation->set_description("must be 1");
  google::rpc::Status status;
  status.add_details()->PackFrom(bad_request);
  state_.submit_status =
      grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "2 faults", status.SerializeAsString());
  const Outcome submitted = Run({"job", "submit", "job.yaml"});
  EXPECT_EQ(submitted.code, 2);
  EXPECT_THAT(submitted.err, HasSubstr("cannot submit the job: 2 faults\n"
                                       "  run.train.steps: must be positive\n"
                                       "  resources.ranks: must be 1\n"));
}

TEST_F(SubmitTest, ValidateOnlySubmitsNothing) {
  const Outcome checked = Run({"job", "submit", "job.yaml", "--validate-only"});
  EXPECT_EQ(checked.code, 0) << checked.err;
  EXPECT_EQ(checked.out, "valid\n");
  EXPECT_TRUE(state_.submits.at(0).validate_only());
  EXPECT_THAT(state_.jobs, IsEmpty());
}

TEST_F(SubmitTest, WatchFollowsToTheEnd) {
  state_.events["jobs/a"] = {StateEvent(1, lemo::v1::Job::RUNNING),
                             StateEvent(2, lemo::v1::Job::CANCELLED)};
  state_.jobs["jobs/a"].set_name("jobs/a");
  state_.jobs["jobs/a"].set_state(lemo::v1::Job::CANCELLED);
  const Outcome watched = Run({"job", "submit", "job.yaml", "--watch"});
  EXPECT_EQ(watched.code, 3) << watched.err;
  EXPECT_THAT(watched.out, HasSubstr("jobs/a was cancelled"));
}

}  // namespace
}  // namespace lemo::cli
