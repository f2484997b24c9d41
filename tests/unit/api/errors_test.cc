// Errors fit into what clients take, and tell what they leave out.
#include "coordinator/api/errors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace lemo::coordinator {
namespace {

using testing::HasSubstr;

// As gRPC writes it: the message with escapes, the details in base64.
size_t HeaderBytes(const grpc::Status& status) {
  size_t bytes = (status.error_details().size() + 2) / 3 * 4;
  for (const unsigned char c : status.error_message()) bytes += c < 0x20 || c > 0x7e ? 3 : 1;
  return bytes;
}

google::rpc::BadRequest BadRequestOf(const grpc::Status& status) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details()));
  google::rpc::BadRequest bad_request;
  for (const auto& detail : rich.details()) {
    if (detail.Is<google::rpc::BadRequest>()) detail.UnpackTo(&bad_request);
  }
  return bad_request;
}

TEST(Errors, AFewFaultsAreAllTold) {
  Violations violations;
  for (int i = 0; i < 5; ++i) violations.Add(absl::StrCat("field", i), "is bad");
  const grpc::Status status = InvalidArgument(violations);
  EXPECT_EQ(status.error_message(), violations.ToStatus().message());
  EXPECT_EQ(BadRequestOf(status).field_violations_size(), 5);
}

TEST(Errors, ManyFaultsAreCutAndCounted) {
  Violations violations;
  for (int i = 0; i < 100'000; ++i) {
    violations.Add(
        {"run.data.train[0]", std::string(100, 'x'), "files/abcdefghijklmnop", i + 1, ""});
  }
  const grpc::Status status = InvalidArgument(violations);
  EXPECT_LT(HeaderBytes(status), 7800u);
  const std::string& message = status.error_message();
  const int64_t shown = std::count(message.begin(), message.end(), '\n');
  EXPECT_GT(shown, 3);
  EXPECT_THAT(message, HasSubstr(absl::StrCat("... and ", 100'000 - shown, " more")));
  EXPECT_GT(BadRequestOf(status).field_violations_size(), 3);
}

TEST(Errors, LongTextIsCutBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "\xc3\xa9";
  for (const grpc::Status& status :
       {ToGrpc(absl::NotFoundError(text)), ToGrpc(absl::UnavailableError("x" + text)),
        PreconditionFailed("STATE", "jobs/a", text)}) {
    EXPECT_LT(HeaderBytes(status), 8100u) << status.error_message();
    google::rpc::Status rich;
    EXPECT_TRUE(rich.ParseFromString(status.error_details())) << "not UTF-8";
    EXPECT_EQ(rich.message(), status.error_message());
  }
  Violations violations;
  violations.Add("field", text);
  EXPECT_LT(HeaderBytes(InvalidArgument(violations)), 8100u);
}

}  // namespace
}  // namespace lemo::coordinator
