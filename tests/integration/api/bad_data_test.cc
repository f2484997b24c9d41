// A hundred thousand bad rows: the first are told, all are counted, and it does not take long.
#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using testing::HasSubstr;

constexpr int kRows = 100'000;

TEST_F(CoordinatorTest, BadRowsAreCappedAndCounted) {
  train_ = LEMO_TRAIN_BINARY;
  Start();
  AddModel();
  std::string rows;
  for (int i = 0; i < kRows; ++i) absl::StrAppend(&rows, "{\"messages\": ", i, "}\n");
  const lemo::v1::JobSpec spec = Spec(Upload(rows));
  const auto begin = std::chrono::steady_clock::now();
  const Job job = Await(Submit(spec).name(), Job::FAILED);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kPatience);
  EXPECT_EQ(job.failure().kind(), lemo::v1::Failure::USER_ERROR);
  EXPECT_EQ(job.attempt(), 0) << "no worker saw it";
  const std::string& file = spec.run().data().train(0).path();
  EXPECT_GE(job.failure().violations_size(), 10);
  EXPECT_LE(job.failure().violations_size(), 100);
  EXPECT_EQ(job.failure().violations(0).file(), file);
  EXPECT_EQ(job.failure().violations(0).line(), 1);
  EXPECT_THAT(job.failure().message(),
              HasSubstr(absl::StrCat(kRows - job.failure().violations_size(), " more")));
  EXPECT_LT(job.ByteSizeLong(), 100'000u);

  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = spec;
  request.set_validate_only(true);
  Job answer;
  const grpc::Status status = jobs_->SubmitJob(Patiently().get(), request, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const std::string message = status.error_message();
  EXPECT_THAT(message, HasSubstr(file + ":1"));
  const int64_t shown = std::count(message.begin(), message.end(), '\n');
  EXPECT_GT(shown, 3);
  EXPECT_THAT(message, HasSubstr(absl::StrCat("... and ", kRows - shown, " more")));
  EXPECT_EQ(Stop(), 0);
}

}  // namespace
}  // namespace lemo::coordinator
