// The disk fills during an upload. A limit on file sizes stands in for it (EFBIG for ENOSPC), which
// needs no mount.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/files.h"
#include "coordinator/artifacts/artifacts.h"
#include "tests/support/file_size_limit.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::HasSubstr;

class DiskFull : public testing::Test {
 protected:
  DiskFull() {
    std::string name = testing::TempDir() + "/artifactsXXXXXX";
    root_ = ::mkdtemp(name.data());
    store_ = *OpenLocalArtifactStore(root_.string());
  }
  ~DiskFull() override { fs::remove_all(root_); }

  fs::path root_;
  std::unique_ptr<ArtifactStore> store_;
};

TEST_F(DiskFull, APieceIsTakenWholeOrNotAtAllAndTheUploadGoesOn) {
  const std::string data = "0123456789abcdef";
  const auto upload = store_->BeginUpload("id", 16, Sha256Hex(data));
  ASSERT_TRUE(upload.ok()) << upload.status();
  ASSERT_TRUE((*upload)->Write(0, data.substr(0, 6)).ok());
  for (rlim_t limit = 6; limit < 16; ++limit) {
    const FileSizeLimit limited(limit);
    const absl::Status status = (*upload)->Write(6, data.substr(6));
    ASSERT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
    ASSERT_THAT(std::string(status.message()), HasSubstr("10 bytes"));
    ASSERT_THAT(std::string(status.message()), HasSubstr(root_.string()));
    ASSERT_EQ((*upload)->offset(), 6);
    ASSERT_EQ(*store_->ReceivedBytes("id"), 6);
  }
  ASSERT_TRUE((*upload)->Write(6, data.substr(6)).ok());
  ASSERT_TRUE((*upload)->Finish().ok());
  EXPECT_EQ(*ReadFile(*store_->LocalPath(Sha256Hex(data))), data);
}

TEST_F(DiskFull, TheBeginningFailsAndCanBeRepeated) {
  {
    const FileSizeLimit limited(3);
    EXPECT_EQ(store_->BeginUpload("id", 16, Sha256Hex("x")).status().code(),
              StatusCode::kResourceExhausted);
  }
  EXPECT_TRUE(store_->BeginUpload("id", 1, Sha256Hex("x")).ok());
}

}  // namespace
}  // namespace lemo::coordinator
