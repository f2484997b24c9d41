// Uploads that lie about what they are.
#include <gmock/gmock.h>

#include <limits>

#include "common/files.h"
#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using grpc::StatusCode;
using lemo::v1::UploadFileRequest;
using testing::HasSubstr;

class UploadTest : public CoordinatorTest {
 protected:
  UploadTest() { Start(); }
  ~UploadTest() override { EXPECT_EQ(Stop(), 0); }

  static UploadFileRequest Begin(const std::string& data, const std::string& id = "u") {
    UploadFileRequest request;
    request.mutable_start()->set_upload_id(id);
    request.mutable_start()->set_display_name("data.jsonl");
    request.mutable_start()->set_bytes(static_cast<int64_t>(data.size()));
    request.mutable_start()->set_sha256(Sha256Hex(data));
    return request;
  }
  static UploadFileRequest Chunk(int64_t offset, const std::string& data) {
    UploadFileRequest request;
    request.mutable_chunk()->set_offset(offset);
    request.mutable_chunk()->set_data(data);
    return request;
  }
  StatusCode Try(const std::vector<UploadFileRequest>& messages) {
    lemo::v1::File file;
    const grpc::Status status = TryUpload(messages, &file);
    message_ = status.error_message();
    return status.error_code();
  }
  int64_t Received(const std::string& id) {
    lemo::v1::GetUploadRequest request;
    request.set_upload_id(id);
    lemo::v1::Upload upload;
    EXPECT_TRUE(files_->GetUpload(Patiently().get(), request, &upload).ok());
    return upload.received_bytes();
  }

  std::string message_;
};

TEST_F(UploadTest, AnotherChecksumIsToldAndNothingStays) {
  EXPECT_EQ(Try({Begin("abc"), Chunk(0, "abd")}), StatusCode::DATA_LOSS);
  EXPECT_THAT(message_, HasSubstr("announced was " + Sha256Hex("abc")));
  EXPECT_EQ(Received("u"), 0);
  EXPECT_EQ(Try({Begin("abc"), Chunk(0, "abc")}), StatusCode::OK);
}

TEST_F(UploadTest, OffsetsMustFollowOneAnother) {
  EXPECT_EQ(Try({Begin("abcdef"), Chunk(0, "abc"), Chunk(4, "ef")}), StatusCode::OUT_OF_RANGE);
  EXPECT_THAT(message_, HasSubstr("at offset 3, not 4"));
  for (const int64_t offset : {int64_t{-1}, int64_t{0}, std::numeric_limits<int64_t>::min(),
                               std::numeric_limits<int64_t>::max()}) {
    EXPECT_EQ(Try({Begin("abcdef"), Chunk(offset, "def")}), StatusCode::OUT_OF_RANGE) << offset;
  }
  EXPECT_EQ(Try({Begin("abcdef"), Chunk(3, "defg")}), StatusCode::OUT_OF_RANGE) << "too much";
  EXPECT_EQ(Try({Begin("abcdef"), Chunk(3, "de")}), StatusCode::OUT_OF_RANGE) << "too little";
  EXPECT_EQ(Received("u"), 5);
  EXPECT_EQ(Try({Begin("abcdef"), Chunk(5, "f")}), StatusCode::OK);
  EXPECT_EQ(Try({Begin("abcdef")}), StatusCode::OK) << "again";
  EXPECT_EQ(Try({Begin("other")}), StatusCode::ALREADY_EXISTS);
}

TEST_F(UploadTest, BeginningsAreChecked) {
  EXPECT_EQ(Try({}), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Try({Chunk(0, "abc")}), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Try({Begin("abc"), Begin("abc")}), StatusCode::INVALID_ARGUMENT);
  std::vector<std::function<void(lemo::v1::UploadStart*)>> faults = {
      [](auto* start) { start->set_upload_id(""); },
      [](auto* start) { start->set_upload_id(std::string(129, 'x')); },
      [](auto* start) { start->set_display_name("../x"); },
      [](auto* start) { start->set_display_name("/etc/passwd"); },
      [](auto* start) { start->set_display_name(std::string("a\0b", 3)); },
      [](auto* start) { start->set_display_name(std::string(256, 'x')); },
      [](auto* start) { start->set_bytes(-1); },
      [](auto* start) { start->set_bytes(0); },
      [](auto* start) { start->set_bytes(std::numeric_limits<int64_t>::max()); },
      [](auto* start) { start->set_sha256("../../../etc/passwd"); },
      [](auto* start) { start->set_sha256(std::string(64, 'g')); },
  };
  for (const auto& fault : faults) {
    UploadFileRequest begin = Begin("abc");
    fault(begin.mutable_start());
    EXPECT_EQ(Try({begin, Chunk(0, "abc")}), StatusCode::INVALID_ARGUMENT)
        << begin.ShortDebugString();
  }
  UploadFileRequest huge = Begin("abc", "huge");
  huge.mutable_start()->set_bytes(int64_t{1} << 40);
  EXPECT_THAT(Try({huge}), testing::AnyOf(StatusCode::RESOURCE_EXHAUSTED, StatusCode::OUT_OF_RANGE))
      << "more than the disk has, or than was sent";
}

TEST_F(UploadTest, UploadIdsAreNoPaths) {
  for (const std::string& id :
       {std::string("../../x"), std::string("/abs"), std::string(".."), std::string("a\0b", 3)}) {
    EXPECT_EQ(Try({Begin("content of " + id, id), Chunk(0, "content of " + id)}), StatusCode::OK);
  }
  EXPECT_FALSE(fs::exists(scratch_ / "x") || fs::exists(scratch_ / "data/x"));
}

TEST_F(UploadTest, KnownContentIsTakenWithItsTrueSizeOnly) {
  ASSERT_EQ(Try({Begin("abc"), Chunk(0, "abc")}), StatusCode::OK);
  UploadFileRequest again = Begin("abc", "v");
  again.mutable_start()->set_bytes(5);
  EXPECT_EQ(Try({again}), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(message_, HasSubstr("has 3 bytes"));
}

// The spelling of a checksum must not make one content two.
TEST_F(UploadTest, ACapitalChecksumIsTheSameContent) {
  const std::string small = Upload("abc", "small");
  UploadFileRequest capital = Begin("abc", "capital");
  std::string* sha256 = capital.mutable_start()->mutable_sha256();
  std::transform(sha256->begin(), sha256->end(), sha256->begin(), ::toupper);
  lemo::v1::File file;
  ASSERT_TRUE(TryUpload({capital}, &file).ok());
  lemo::v1::DeleteFileRequest request;
  request.set_name(small);
  google::protobuf::Empty nothing;
  ASSERT_TRUE(files_->DeleteFile(Patiently().get(), request, &nothing).ok());
  EXPECT_EQ(Download(file.name()), "abc");
}

TEST_F(UploadTest, ADeletedFileIsGoneAndItsUploadCanBeginAnew) {
  const std::string name = Upload("abc", "u");
  lemo::v1::DeleteFileRequest request;
  request.set_name(name);
  google::protobuf::Empty nothing;
  ASSERT_TRUE(files_->DeleteFile(Patiently().get(), request, &nothing).ok());
  const fs::path content =
      scratch_ / "data/artifacts/sha256" / Sha256Hex("abc").substr(0, 2) / Sha256Hex("abc");
  EXPECT_TRUE(Comes([&] { return !fs::exists(content); }));
  EXPECT_EQ(Received("u"), 0);
  EXPECT_NE(Upload("abd", "u"), name);
}

// What a link in the data directory points at is not served.
TEST_F(UploadTest, ALinkInPlaceOfContentIsNotFollowed) {
  const std::string name = Upload("abc");
  const fs::path content =
      scratch_ / "data/artifacts/sha256" / Sha256Hex("abc").substr(0, 2) / Sha256Hex("abc");
  fs::remove(content);
  fs::create_symlink("/etc/passwd", content);
  lemo::v1::DownloadFileRequest request;
  request.set_name(name);
  const auto context = Patiently();
  const auto reader = files_->DownloadFile(context.get(), request);
  lemo::v1::DataChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace lemo::coordinator
