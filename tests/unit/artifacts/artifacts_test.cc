// Uploads and reads of content by checksum.
#include "coordinator/artifacts/artifacts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/ascii.h"
#include "common/files.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

class Artifacts : public testing::Test {
 protected:
  Artifacts() {
    std::string name = testing::TempDir() + "/artifactsXXXXXX";
    root_ = ::mkdtemp(name.data());
    Open();
  }
  ~Artifacts() override { fs::remove_all(root_); }

  void Open() {
    auto store = OpenLocalArtifactStore(root_.string());
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  std::unique_ptr<Upload> Begin(const std::string& id, const std::string& data) {
    auto upload = store_->BeginUpload(id, static_cast<int64_t>(data.size()), Sha256Hex(data));
    EXPECT_TRUE(upload.ok()) << upload.status();
    return upload.ok() ? *std::move(upload) : nullptr;
  }

  std::string Publish(const std::string& data) {
    const auto upload = Begin("publish " + data.substr(0, 10), data);
    EXPECT_TRUE(upload->Write(0, data).ok());
    EXPECT_TRUE(upload->Finish().ok());
    return Sha256Hex(data);
  }

  // What Read gives, and the sizes of the pieces.
  absl::Status Read(const std::string& sha256, int64_t offset, std::string* data) {
    data->clear();
    pieces_.clear();
    return store_->Read(sha256, offset, [&](int64_t at, std::string_view piece) {
      EXPECT_EQ(at, offset + static_cast<int64_t>(data->size()));
      data->append(piece);
      pieces_.push_back(piece.size());
      return true;
    });
  }

  // Paths of regular files from the root.
  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(root_)) {
      if (entry.is_regular_file()) files.push_back(fs::relative(entry.path(), root_).string());
    }
    std::sort(files.begin(), files.end());
    return files;
  }

  void Damage(const std::string& sha256, int64_t at) {
    const std::string path = *store_->LocalPath(sha256);
    ::chmod(path.c_str(), 0644);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.put('~');
  }

  fs::path root_;
  std::unique_ptr<ArtifactStore> store_;
  std::vector<size_t> pieces_;
};

TEST_F(Artifacts, WhatWasWrittenIsReadUnderItsChecksum) {
  const std::string data = "hello, world";
  const std::string sha256 = Sha256Hex(data);
  EXPECT_FALSE(store_->Has(sha256));
  const auto upload = Begin("id", data);
  ASSERT_TRUE(upload->Write(0, "hello").ok());
  EXPECT_EQ(upload->offset(), 5);
  ASSERT_TRUE(upload->Write(5, "").ok());
  ASSERT_TRUE(upload->Write(5, ", world").ok());
  EXPECT_FALSE(store_->Has(sha256)) << "not before it is whole";
  ASSERT_TRUE(upload->Finish().ok());
  EXPECT_TRUE(store_->Has(sha256));
  EXPECT_TRUE(store_->Has(absl::AsciiStrToUpper(sha256)));
  std::string back;
  ASSERT_TRUE(Read(sha256, 0, &back).ok());
  EXPECT_EQ(back, data);
  EXPECT_EQ(*ReadFile(*store_->LocalPath(sha256)), data);
  EXPECT_THAT(Files(), ElementsAre("sha256/" + sha256.substr(0, 2) + "/" + sha256))
      << "nothing else is left";
  EXPECT_EQ(upload->Write(12, "x").code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(upload->Finish().code(), StatusCode::kFailedPrecondition);
}

TEST_F(Artifacts, EmptyContent) {
  const std::string sha256 = Publish("");
  std::string back;
  EXPECT_TRUE(Read(sha256, 0, &back).ok());
  EXPECT_THAT(pieces_, ElementsAre());
  EXPECT_TRUE(store_->Has(sha256));
}

TEST_F(Artifacts, TheSameContentTwiceIsOne) {
  const std::string data = "same";
  Publish(data);
  const auto again = Begin("another id", data);
  ASSERT_TRUE(again->Write(0, data).ok());
  ASSERT_TRUE(again->Finish().ok());
  EXPECT_EQ(Files().size(), 1);
}

TEST_F(Artifacts, AnUploadGoesOnAfterABreakAndARestart) {
  const std::string data = "0123456789";
  EXPECT_EQ(*store_->ReceivedBytes("id"), 0);
  { ASSERT_TRUE(Begin("id", data)->Write(0, "0123").ok()); }
  Open();
  EXPECT_EQ(*store_->ReceivedBytes("id"), 4);
  const auto upload = Begin("id", data);
  EXPECT_EQ(upload->offset(), 4);
  EXPECT_EQ(upload->Write(0, "0123").code(), StatusCode::kOutOfRange);
  EXPECT_EQ(upload->Write(5, "56789").code(), StatusCode::kOutOfRange);
  EXPECT_EQ(upload->Finish().code(), StatusCode::kOutOfRange) << "bytes are missing";
  ASSERT_TRUE(upload->Write(4, "456789").ok());
  EXPECT_EQ(upload->Write(10, "x").code(), StatusCode::kOutOfRange) << "more than announced";
  ASSERT_TRUE(upload->Finish().ok());
  std::string back;
  ASSERT_TRUE(Read(Sha256Hex(data), 0, &back).ok());
  EXPECT_EQ(back, data);
  EXPECT_EQ(*store_->ReceivedBytes("id"), 0);
}

TEST_F(Artifacts, OneWriterAtATime) {
  auto first = Begin("id", "abc");
  EXPECT_EQ(store_->BeginUpload("id", 3, Sha256Hex("abc")).status().code(), StatusCode::kAborted);
  EXPECT_NE(Begin("other", "abc"), nullptr);
  first.reset();
  EXPECT_NE(Begin("id", "abc"), nullptr);
}

TEST_F(Artifacts, WritersThatFollowOneAnotherNeverTouchWhatIsPublished) {
  const std::string data(20'000, 'a');
  const std::string sha256 = Publish(data);
  std::atomic<int> published = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      while (published < 60) {
        const auto upload = store_->BeginUpload("id", 20'000, sha256);
        if (upload.status().code() == StatusCode::kAborted) continue;
        ASSERT_TRUE(upload.ok()) << upload.status();
        ASSERT_TRUE((*upload)->Write(0, data).ok());
        ASSERT_TRUE((*upload)->Finish().ok());
        ++published;
      }
    });
  }
  const auto all = [](int64_t, std::string_view) { return true; };
  while (published < 60 && !HasFailure()) {
    const absl::Status status = store_->Read(sha256, 0, all);
    EXPECT_TRUE(status.ok()) << status;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Files().size(), 1);
}

TEST_F(Artifacts, WhatWasAnnouncedStays) {
  Begin("id", "abc").reset();
  for (const auto& [bytes, sha256] :
       std::vector<std::pair<int64_t, std::string>>{{4, Sha256Hex("abc")},
                                                    {3, Sha256Hex("abd")},
                                                    {-1, Sha256Hex("abc")},
                                                    {3, "abc"},
                                                    {3, std::string(64, 'g')},
                                                    {3, std::string(64, '.')},
                                                    {3, ""}}) {
    EXPECT_EQ(store_->BeginUpload("id", bytes, sha256).status().code(),
              StatusCode::kInvalidArgument)
        << bytes << sha256;
  }
}

TEST_F(Artifacts, AnotherChecksumIsDataLossAndDropsWhatWasReceived) {
  auto upload = Begin("id", "abc");
  ASSERT_TRUE(upload->Write(0, "abx").ok());
  const absl::Status status = upload->Finish();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(Sha256Hex("abx")));
  EXPECT_THAT(Files(), ElementsAre());
  const auto again = Begin("id", "abc");
  ASSERT_NE(again, nullptr) << "while the former object still lives";
  EXPECT_TRUE(again->Write(0, "abc").ok() && again->Finish().ok());
}

TEST_F(Artifacts, AWrongTailLeftByABrokenMachineIsFound) {
  { ASSERT_TRUE(Begin("id", "0123456789")->Write(0, "0123").ok()); }
  for (const std::string& file : Files()) {
    if (file.size() > 5 && file.substr(file.size() - 5) == ".part") {
      ASSERT_TRUE(WriteFileAtomic(root_ / file, std::string("01\0\0", 4)).ok());
    }
  }
  const auto upload = Begin("id", "0123456789");
  ASSERT_TRUE(upload->Write(4, "456789").ok());
  EXPECT_EQ(upload->Finish().code(), StatusCode::kDataLoss);
}

TEST_F(Artifacts, AnUploadLargerThanTheDiskIsRefusedAtOnce) {
  const absl::Status status = store_->BeginUpload("id", int64_t{1} << 60, Sha256Hex("")).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr(root_.string()));
  EXPECT_THAT(std::string(status.message()), HasSubstr("1152921504606846976 bytes wanted"));
}

TEST_F(Artifacts, ReadsInPiecesFromAnyOffset) {
  std::string data;
  for (int i = 0; i < 250'000; ++i) data += std::to_string(i % 97) + ",";
  data.resize((1 << 19) + 1);
  data += data + data + data;  // 2 MiB and 4 bytes
  const std::string sha256 = Publish(data);
  std::string back;
  ASSERT_TRUE(Read(sha256, 0, &back).ok());
  EXPECT_EQ(back, data);
  EXPECT_THAT(pieces_, ElementsAre(1 << 20, 1 << 20, 4));
  ASSERT_TRUE(Read(sha256, 100, &back).ok());
  EXPECT_EQ(back, data.substr(100));
  const auto size = static_cast<int64_t>(data.size());
  ASSERT_TRUE(Read(sha256, size, &back).ok());
  EXPECT_EQ(back, "");
  EXPECT_EQ(Read(sha256, size + 1, &back).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(Read(sha256, -1, &back).code(), StatusCode::kOutOfRange);
  int pieces = 0;
  EXPECT_TRUE(
      store_->Read(sha256, 0, [&](int64_t, std::string_view) { return ++pieces < 2; }).ok());
  EXPECT_EQ(pieces, 2);
}

TEST_F(Artifacts, DamageIsFoundBeforeTheLastPiece) {
  const std::string data(3 << 20, 'a');
  const std::string sha256 = Publish(data);
  Damage(sha256, 0);
  std::string back;
  const absl::Status status = Read(sha256, 0, &back);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(sha256));
  EXPECT_EQ(back.size(), 2 << 20);
  const auto upload = Begin("again", data);
  ASSERT_TRUE(upload->Write(0, data).ok() && upload->Finish().ok());
  EXPECT_TRUE(Read(sha256, 0, &back).ok()) << "sent again, it is whole again";
}

TEST_F(Artifacts, WhatIsNotThereIsNotFound) {
  std::string outside(64, 'a'), absolute(64, 'a');
  outside.replace(0, 3, "../");
  absolute[0] = '/';
  for (const std::string& name :
       {Sha256Hex("none"), std::string("x"), std::string(), outside, absolute}) {
    std::string back;
    EXPECT_FALSE(store_->Has(name));
    EXPECT_EQ(Read(name, 0, &back).code(), StatusCode::kNotFound);
    EXPECT_EQ(store_->LocalPath(name).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(store_->Remove(name).code(), StatusCode::kNotFound);
  }
  const std::string sha256 = Publish("gone");
  ASSERT_TRUE(store_->Remove(sha256).ok());
  EXPECT_FALSE(store_->Has(sha256));
  EXPECT_EQ(store_->Remove(sha256).code(), StatusCode::kNotFound);
}

TEST_F(Artifacts, UploadIdsAreAnyText) {
  const std::string data = "abc";
  for (const std::string& id : {std::string("../../../etc/x"), std::string("/"), std::string(),
                                std::string("a\0b", 3), std::string(10'000, 'x')}) {
    ASSERT_TRUE(Begin(id, data)->Write(0, "a").ok());
    EXPECT_EQ(*store_->ReceivedBytes(id), 1);
  }
  for (const std::string& file : Files()) EXPECT_EQ(file.find("incoming/"), 0) << file;
}

TEST_F(Artifacts, OldContentIsVisitedAndGoesOnlyWhileItIsOld) {
  const std::string old = Publish("old"), used = Publish("used"), fresh = Publish("fresh");
  for (const std::string& sha256 : {old, used}) {
    fs::last_write_time(*store_->LocalPath(sha256),
                        fs::file_time_type::clock::now() - std::chrono::hours(48));
  }
  const absl::Time before = absl::Now() - absl::Hours(24);
  std::vector<std::string> seen;
  ASSERT_TRUE(store_
                  ->VisitOld(before,
                             [&](const std::string& sha256) {
                               seen.push_back(sha256);
                               return absl::OkStatus();
                             })
                  .ok());
  EXPECT_THAT(seen, testing::UnorderedElementsAre(old, used));
  EXPECT_TRUE(store_->Refresh(used));
  EXPECT_FALSE(store_->RemoveIfOld(used, before));
  EXPECT_FALSE(store_->RemoveIfOld(fresh, before));
  EXPECT_TRUE(store_->RemoveIfOld(old, before));
  EXPECT_FALSE(store_->RemoveIfOld(old, before)) << "again";
  EXPECT_FALSE(store_->Refresh(old));
  EXPECT_EQ(*store_->Size(used), 4);
  EXPECT_EQ(store_->Size(old).status().code(), StatusCode::kNotFound);
}

TEST_F(Artifacts, AnUploadUnderWayIsNoOldOne) {
  const auto upload = Begin("under way", "abc");
  ASSERT_TRUE(upload->Write(0, "a").ok());
  { ASSERT_TRUE(Begin("left", "abc")->Write(0, "a").ok()); }
  for (const std::string& file : Files()) {
    fs::last_write_time(root_ / file, fs::file_time_type::clock::now() - std::chrono::hours(48));
  }
  EXPECT_EQ(*store_->RemoveOldUploads(absl::Now() - absl::Hours(24)), 1);
  EXPECT_EQ(*store_->ReceivedBytes("left"), 0);
  ASSERT_TRUE(upload->Write(1, "bc").ok());
  EXPECT_TRUE(upload->Finish().ok());
}

TEST_F(Artifacts, ALinkIsNoContent) {
  const std::string sha256 = Publish("abc");
  const fs::path path = *store_->LocalPath(sha256);
  fs::rename(path, root_ / "elsewhere");
  fs::create_symlink(root_ / "elsewhere", path);
  EXPECT_FALSE(store_->Has(sha256));
  EXPECT_EQ(store_->LocalPath(sha256).status().code(), StatusCode::kNotFound);
  std::string data;
  EXPECT_EQ(Read(sha256, 0, &data).code(), StatusCode::kNotFound);
}

TEST_F(Artifacts, UploadsThatWereGivenUpAreClearedAtTheNextStart) {
  { ASSERT_TRUE(Begin("old", "abc")->Write(0, "a").ok()); }
  for (const std::string& file : Files()) {
    fs::last_write_time(root_ / file,
                        fs::file_time_type::clock::now() - std::chrono::hours(8 * 24));
  }
  { ASSERT_TRUE(Begin("new", "abc")->Write(0, "ab").ok()); }
  Open();
  EXPECT_EQ(*store_->ReceivedBytes("old"), 0);
  EXPECT_EQ(*store_->ReceivedBytes("new"), 2);
  EXPECT_EQ(Files().size(), 2);
}

}  // namespace
}  // namespace lemo::coordinator
