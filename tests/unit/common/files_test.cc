#include "common/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

namespace lemo {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class FilesTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ = fs::path(testing::TempDir()) /
           (std::string("files_test.") + info->name() + "." + std::to_string(::getpid()));
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  size_t Entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(dir_), {}));
  }

  fs::path dir_;
};

TEST_F(FilesTest, WriteThenReadReplacesTheWhole) {
  const fs::path path = dir_ / "a";
  ASSERT_TRUE(WriteFileAtomic(path, "first, and longer").ok());
  const std::string second("sec\0nd", 6);
  ASSERT_TRUE(WriteFileAtomic(path, second).ok());
  EXPECT_EQ(ReadFile(path).value(), second);
  EXPECT_EQ(Entries(), 1u) << "a file beside was left";
}

TEST_F(FilesTest, FailedWriteLeavesTheOldFileAndNothingElse) {
  const fs::path path = dir_ / "taken";
  fs::create_directories(path / "not_empty");
  const absl::Status status = WriteFileAtomic(path, "data");
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(path.string()));
  EXPECT_TRUE(fs::exists(path / "not_empty"));
  EXPECT_EQ(Entries(), 1u);
  EXPECT_EQ(WriteFileAtomic(dir_ / "absent" / "a", "x").code(), absl::StatusCode::kNotFound);
}

TEST_F(FilesTest, FullDiskIsAPreconditionWithThePath) {
  const absl::Status status = ErrnoStatus(ENOSPC, "write", "/data/x");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot write /data/x: No space left"));
}

TEST_F(FilesTest, AFullDiskIsKnownByItsMessage) {
  for (const int error : {ENOSPC, EDQUOT, EFBIG}) {
    const absl::Status status = ErrnoStatus(error, "write", "a/b");
    EXPECT_TRUE(SaysDiskIsFull("step 30: " + std::string(status.message()) + "; as it was"));
  }
  EXPECT_FALSE(SaysDiskIsFull(std::string(ErrnoStatus(EIO, "write", "a/b").message())));
}

TEST_F(FilesTest, ReadKnowsItsErrors) {
  EXPECT_EQ(ReadFile(dir_ / "absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadFile(dir_).status().code(), absl::StatusCode::kInvalidArgument);
  std::ofstream(dir_ / "ten") << "0123456789";
  EXPECT_EQ(ReadFile(dir_ / "ten", 10).value(), "0123456789");
  EXPECT_EQ(ReadFile(dir_ / "ten", 9).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FilesTest, Sha256) {
  const std::string abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  EXPECT_EQ(Sha256Hex("abc"), abc);
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  std::ofstream(dir_ / "abc") << "abc";
  EXPECT_EQ(Sha256HexOfFile(dir_ / "abc").value(), abc);
}

TEST_F(FilesTest, MappingMovesAndKnowsEmptyFiles) {
  std::ofstream(dir_ / "some") << "mapped";
  std::ofstream(dir_ / "none");
  MappedFile file = MappedFile::Open(dir_ / "some").value();
  MappedFile moved = std::move(file);
  EXPECT_EQ(moved.bytes(), "mapped");
  EXPECT_EQ(file.bytes(), "");  // NOLINT(bugprone-use-after-move): moved-from means empty
  moved = MappedFile::Open(dir_ / "none").value();
  EXPECT_EQ(moved.bytes(), "");
  EXPECT_EQ(MappedFile::Open(dir_ / "absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MappedFile::Open(dir_).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FilesTest, MakeDirectoriesWithParents) {
  EXPECT_TRUE(MakeDirectories(dir_ / "a" / "b").ok());
  EXPECT_TRUE(MakeDirectories(dir_ / "a" / "b").ok());
  std::ofstream(dir_ / "file") << "x";
  EXPECT_FALSE(MakeDirectories(dir_ / "file" / "c").ok());
}

}  // namespace
}  // namespace lemo
