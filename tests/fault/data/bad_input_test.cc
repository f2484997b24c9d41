// Each kind of bad data gets one clear message with field, file, line and reason, quickly, and
// leaves no cache behind.
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/data/scratch.h"

namespace lemo::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class BadInput : public testing::Test {
 protected:
  // The message for a file with this content.
  std::string MessageFor(const std::string& name, const std::string& content) {
    path_ = scratch_.Write(name, content);
    return MessageForPath(path_);
  }

  std::string MessageForPath(const std::string& path) {
    const auto begin = std::chrono::steady_clock::now();
    const Opened opened =
        OpenData({path}, {.max_length = 64, .cache_dir = scratch_ / "cache", .vocabulary = 269});
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
    EXPECT_TRUE(absl::IsInvalidArgument(opened.dataset.status())) << opened.dataset.status();
    EXPECT_EQ(opened.violations.total(), 1) << Text(opened.violations);
    EXPECT_TRUE(!std::filesystem::exists(scratch_ / "cache") ||
                std::filesystem::is_empty(scratch_ / "cache"));
    return Text(opened.violations);
  }

  // How a message about a line of the file begins.
  std::string At(int line) const {
    return "data.train[0]: " + path_ + ":" + std::to_string(line) + ": ";
  }

  Scratch scratch_;
  std::string path_;
};

constexpr char kGood[] = "{\"text\": \"fine\"}\n";

TEST_F(BadInput, AbsentFile) {
  const std::string path = (scratch_ / "absent.jsonl").string();
  EXPECT_EQ(MessageForPath(path),
            "data.train[0].path: cannot open " + path + ": No such file or directory\n");
}

TEST_F(BadInput, Directory) {
  EXPECT_THAT(MessageForPath((scratch_ / "").string()),
              AllOf(StartsWith("data.train[0].path: "), HasSubstr("Is a directory")));
}

TEST_F(BadInput, PipeDoesNotHang) {
  const std::string path = (scratch_ / "pipe").string();
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(MessageForPath(path), HasSubstr(path + " is not a regular file"));
}

TEST_F(BadInput, EmptyFile) {
  const std::string message = MessageFor("a.jsonl", "");
  EXPECT_EQ(message, "data.train[0]: " + path_ + ": is empty\n");
}

TEST_F(BadInput, EmptyBook) {
  const std::string message = MessageFor("a.txt", "\n  \n");
  EXPECT_EQ(message, "data.train[0]: " + path_ + ": is empty\n");
}

TEST_F(BadInput, RowNotUtf8) {
  const std::string message = MessageFor("a.jsonl", std::string(kGood) + "{\"text\": \"\xE9\"}\n");
  EXPECT_EQ(message, At(2) + "is not UTF-8 (byte 11 of the line)\n");
}

TEST_F(BadInput, BookNotUtf8) {
  const std::string message = MessageFor("a.txt", "one\ntwo\nna\xEFve\n");
  EXPECT_EQ(message, At(3) + "is not UTF-8\n");
}

TEST_F(BadInput, Utf16) {
  const std::string message = MessageFor("a.txt", std::string("\xFF\xFE"
                                                              "a\0b\0",
                                                              6));
  EXPECT_EQ(message, At(1) + "is not UTF-8\n");
}

TEST_F(BadInput, SyntaxError) {
  const std::string message = MessageFor("a.jsonl", std::string(kGood) + kGood + "{\"text\": }\n");
  EXPECT_THAT(message, StartsWith(At(3) + "is not JSON: column 10: syntax error"));
}

TEST_F(BadInput, MixedFormats) {
  const std::string message =
      MessageFor("a.jsonl", std::string(kGood) + "{\"prompt\": \"p\", \"completion\": \"c\"}\n");
  EXPECT_EQ(message,
            At(2) +
                "is a completion row in a file of text rows (as line 1 is); a file has one "
                "format\n");
}

TEST_F(BadInput, UnknownFormat) {
  const std::string message =
      MessageFor("a.jsonl", "{\"instruction\": \"p\", \"output\": \"c\"}\n");
  EXPECT_EQ(message,
            At(1) +
                "has neither `messages`, nor `prompt` and `completion`, nor `text`; its keys "
                "are: instruction, output\n");
}

TEST_F(BadInput, UnknownRole) {
  const std::string message =
      MessageFor("a.jsonl", R"({"messages": [{"role": "human", "content": "x"}]})");
  EXPECT_THAT(message,
              StartsWith(At(1) + "messages[0].role: unknown role \"human\"; the roles are "));
}

TEST_F(BadInput, WrongType) {
  const std::string message = MessageFor("a.jsonl", std::string(kGood) + "{\"text\": 7}\n");
  EXPECT_EQ(message, At(2) + "text: must be a string, found 7\n");
}

TEST_F(BadInput, TemplateRefuses) {
  const std::string message = MessageFor(
      "a.jsonl",
      R"({"messages": [{"role": "user", "content": "refuse me"}, {"role": "assistant", "content": "x"}]})");
  EXPECT_THAT(message,
              AllOf(StartsWith(At(1) + "messages: "), HasSubstr("this conversation is refused")));
}

TEST_F(BadInput, RowWithoutLabels) {
  const std::string message =
      MessageFor("a.jsonl", R"({"messages": [{"role": "user", "content": "x"}]})");
  EXPECT_THAT(message, StartsWith(At(1) + "no token of the row would be trained"));
}

TEST_F(BadInput, OverlongRow) {
  const std::string message =
      MessageFor("a.jsonl", std::string(kGood) + "{\"text\": \"" + std::string(100, 'x') + "\"}\n");
  EXPECT_EQ(message, At(2) +
                         "has 102 tokens, more than max_length 64; data.overlong may be truncate, "
                         "split or drop\n");
}

TEST_F(BadInput, MaxLengthZero) {
  const Opened opened = OpenData({scratch_.Write("a.jsonl", kGood)}, {.max_length = 0});
  EXPECT_EQ(Text(opened.violations), "data.max_length: must be at least 2\n");
}

TEST_F(BadInput, NoFiles) {
  const Opened opened = OpenData({}, {.max_length = 8});
  EXPECT_EQ(Text(opened.violations), "data.train: names no files\n");
}

TEST_F(BadInput, UnknownFormatName) {
  Opened opened;
  opened.dataset =
      Dataset::Open({DataFileOf(scratch_.Write("a.jsonl", kGood), "alpaca")}, TinyModel(),
                    {.max_length = 8}, &opened.counts, &opened.violations);
  EXPECT_EQ(Text(opened.violations),
            "data.train[0].format: \"alpaca\" is none of auto, chat, completion, text, book\n");
}

TEST_F(BadInput, CacheFolderIsAFile) {
  const std::string occupied = scratch_.Write("cache", "mine");
  const Opened opened =
      OpenData({scratch_.Write("a.jsonl", kGood)}, {.max_length = 8, .cache_dir = occupied});
  ASSERT_FALSE(opened.dataset.ok());
  EXPECT_THAT(std::string(opened.dataset.status().message()),
              AllOf(StartsWith("data.cache_dir: cannot "), HasSubstr(occupied)));
  EXPECT_EQ(Slurp(occupied), "mine");
}

TEST_F(BadInput, FullDisk) {
  std::string content;
  for (int i = 0; i < 20'000; ++i) content += "{\"text\": \"some words to fill a disk\"}\n";
  const std::string path = scratch_.Write("a.jsonl", content);
  // A limit on the size of files answers EFBIG, which stands for a full disk.
  const auto ignore = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small = {.rlim_cur = 100'000, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Opened opened = OpenData({path}, {.max_length = 64, .cache_dir = scratch_ / "cache"});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, ignore);
  EXPECT_TRUE(absl::IsFailedPrecondition(opened.dataset.status())) << opened.dataset.status();
  EXPECT_THAT(std::string(opened.dataset.status().message()), HasSubstr("cannot write "));
  EXPECT_TRUE(std::filesystem::is_empty(scratch_ / "cache"));
}

}  // namespace
}  // namespace lemo::train
