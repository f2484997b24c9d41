// A cache that was cut, altered or swapped anywhere is found out and made anew, with the same
// result.
#include "worker/train/data/cache.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/data/scratch.h"

namespace lemo::train {
namespace {

std::vector<std::vector<int32_t>> AllTokens(const Dataset& data) {
  std::vector<std::vector<int32_t>> out;
  for (int64_t i = 0; i < data.rows(); ++i) {
    const Document document = data.row(i);
    std::vector<int32_t>& row = out.emplace_back(document.tokens.begin(), document.tokens.end());
    row.insert(row.end(), document.trained.begin(), document.trained.end());
    row.push_back(static_cast<int32_t>(document.line));
    row.push_back(static_cast<int32_t>(document.labels));
  }
  return out;
}

class CacheProperty : public testing::Test {
 protected:
  CacheProperty() {
    std::string content;
    for (int i = 0; i < 40; ++i) {
      content += "{\"prompt\": \"" + std::to_string(i) + "?\", \"completion\": \"" +
                 std::string(static_cast<size_t>(i % 7 + 1), 'x') + "\"}\n";
    }
    path_ = scratch_.Write("a.jsonl", content);
    options_ = {.max_length = 32, .cache_dir = scratch_ / "cache"};
    const Opened opened = OpenData({path_}, options_, text_);
    EXPECT_TRUE(opened.dataset.ok()) << opened.dataset.status();
    expected_ = AllTokens(*opened.dataset);
    for (const auto& entry : std::filesystem::directory_iterator(scratch_ / "cache")) {
      cache_ = entry.path();
    }
    whole_ = Slurp(cache_);
  }

  // Puts `bytes` in the place of the cache; the data must come out as before, and the cache too.
  void ExpectRebuilt(const std::string& bytes) {
    std::filesystem::remove(cache_);
    std::ofstream(cache_, std::ios::binary) << bytes;
    const Opened opened = OpenData({path_}, options_, text_);
    ASSERT_TRUE(opened.dataset.ok()) << opened.dataset.status();
    EXPECT_EQ(opened.counts.files_from_cache, 0);
    EXPECT_EQ(AllTokens(*opened.dataset), expected_);
    EXPECT_EQ(Slurp(cache_), whole_);
  }

  const text::ModelText text_ = TinyModel();
  Scratch scratch_;
  std::string path_;
  DatasetOptions options_;
  std::filesystem::path cache_;
  std::string whole_;
  std::vector<std::vector<int32_t>> expected_;
};

TEST_F(CacheProperty, WholeOneIsUsed) {
  const Opened opened = OpenData({path_}, options_, text_);
  ASSERT_TRUE(opened.dataset.ok());
  EXPECT_EQ(opened.counts.files_from_cache, 1);
  EXPECT_EQ(AllTokens(*opened.dataset), expected_);
}

TEST_F(CacheProperty, CutAnywhere) {
  for (size_t size = 0; size < whole_.size(); size += 61) {
    SCOPED_TRACE(size);
    ExpectRebuilt(whole_.substr(0, size));
  }
  ExpectRebuilt(whole_.substr(0, whole_.size() - 1));
  ExpectRebuilt(whole_ + '\0');
}

TEST_F(CacheProperty, AlteredAnywhere) {
  for (size_t at = 0; at < whole_.size(); at += 13) {
    SCOPED_TRACE(at);
    std::string altered = whole_;
    altered[at] = static_cast<char>(altered[at] ^ 1);
    ExpectRebuilt(altered);
  }
}

TEST_F(CacheProperty, ZeroedFromAnywhere) {
  // What a file system may leave after a power cut: the size is right, the tail is not.
  for (size_t at = 0; at + 1 < whole_.size(); at += 97) {
    SCOPED_TRACE(at);
    std::string zeroed = whole_.substr(0, at);
    zeroed.resize(whole_.size());
    if (zeroed != whole_) ExpectRebuilt(zeroed);
  }
}

TEST_F(CacheProperty, CacheOfOtherDataIsNotTaken) {
  const std::string other = scratch_.Write("b.jsonl", "{\"text\": \"other\"}\n");
  DatasetOptions options = options_;
  options.cache_dir = scratch_ / "other";
  ASSERT_TRUE(OpenData({other}, options, text_).dataset.ok());
  for (const auto& entry : std::filesystem::directory_iterator(scratch_ / "other")) {
    ExpectRebuilt(Slurp(entry.path()));
  }
}

TEST_F(CacheProperty, NothingIsLeftBeside) {
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(scratch_ / "cache")) {
    EXPECT_EQ(entry.path(), cache_);
    ++files;
  }
  EXPECT_EQ(files, 1u);
}

}  // namespace
}  // namespace lemo::train
