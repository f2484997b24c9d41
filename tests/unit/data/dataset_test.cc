#include "worker/train/data/dataset.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/data/scratch.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int32_t> Tokens(const Document& document) {
  return {document.tokens.begin(), document.tokens.end()};
}

TEST(DatasetTest, RowsOfSeveralFilesInOrder) {
  const Scratch scratch;
  const std::vector<std::string> paths = {
      scratch.Write("a.jsonl", "{\"text\": \"x\"}\n\n{\"text\": \"yz\"}\n"),
      scratch.Write("b.jsonl", "{\"prompt\": \"p\", \"completion\": \"q\"}\n"),
      scratch.Write("c.txt", "w\n")};
  const Opened opened = OpenData(paths, {.max_length = 8});
  ASSERT_TRUE(opened.dataset.ok()) << opened.dataset.status();
  const Dataset& data = *opened.dataset;
  ASSERT_EQ(data.rows(), 4);
  EXPECT_THAT(Tokens(data.row(0)), ElementsAre(kBos, 'x', kEos));
  EXPECT_THAT(Tokens(data.row(1)), ElementsAre(kBos, 'y', 'z', kEos));
  EXPECT_THAT(Tokens(data.row(2)), ElementsAre(kBos, 'p', 'q', kEos));
  EXPECT_THAT(Tokens(data.row(3)), ElementsAre(kBos, 'w', '\n', kEos));
  EXPECT_THAT(std::vector<uint8_t>(data.row(2).trained.begin(), data.row(2).trained.end()),
              ElementsAre(0, 0, 1, 1));
  EXPECT_EQ(data.row(1).line, 3);
  EXPECT_EQ(data.row(2).file, 1);
  EXPECT_EQ(data.path(data.row(2).file), paths[1]);
  EXPECT_EQ(data.length(3), 4);
  EXPECT_EQ(data.row(2).labels, 2);
  EXPECT_EQ(data.tokens(), 15);
  EXPECT_EQ(data.labels(), 2 + 3 + 2 + 3);
  EXPECT_EQ(data.longest(), 4);
  EXPECT_EQ(opened.counts.files, 3);
  EXPECT_EQ(opened.counts.rows, 4);
  EXPECT_EQ(opened.counts.length_histogram[1], 1);  // 2 to 3 tokens
  EXPECT_EQ(opened.counts.length_histogram[2], 3);  // 4 to 7
}

// A row of 10 tokens (BOS, 8 letters, EOS) between two short ones.
constexpr char kOverlong[] = "{\"text\": \"a\"}\n{\"text\": \"bcdfgjkl\"}\n{\"text\": \"m\"}\n";

TEST(DatasetTest, OverlongRowsAreAnErrorByDefault) {
  const Scratch scratch;
  const Opened opened = OpenData({scratch.Write("a.jsonl", kOverlong)}, {.max_length = 4});
  EXPECT_TRUE(absl::IsInvalidArgument(opened.dataset.status()));
  ASSERT_EQ(opened.violations.total(), 1);
  EXPECT_THAT(Text(opened.violations),
              HasSubstr("a.jsonl:2: has 10 tokens, more than max_length 4; data.overlong may be"));
}

TEST(DatasetTest, TruncateSplitAndDropAreCounted) {
  const Scratch scratch;
  const std::string path = scratch.Write("a.jsonl", kOverlong);

  Opened opened = OpenData({path}, {.max_length = 4, .overlong = Overlong::kTruncate});
  ASSERT_TRUE(opened.dataset.ok()) << opened.dataset.status();
  ASSERT_EQ(opened.dataset->rows(), 3);
  EXPECT_THAT(Tokens(opened.dataset->row(1)), ElementsAre(kBos, 'b', 'c', 'd'));
  EXPECT_EQ(opened.counts.rows_truncated, 1);
  EXPECT_EQ(opened.counts.tokens_lost, 6);
  EXPECT_EQ(opened.counts.labels_lost, 6);

  opened = OpenData({path}, {.max_length = 4, .overlong = Overlong::kDrop});
  ASSERT_TRUE(opened.dataset.ok());
  EXPECT_EQ(opened.dataset->rows(), 2);
  EXPECT_EQ(opened.dataset->row(1).line, 3);
  EXPECT_EQ(opened.counts.rows_dropped, 1);
  EXPECT_EQ(opened.counts.tokens_lost, 10);

  opened = OpenData({path}, {.max_length = 4, .overlong = Overlong::kSplit});
  ASSERT_TRUE(opened.dataset.ok());
  ASSERT_EQ(opened.dataset->rows(), 5);
  EXPECT_THAT(Tokens(opened.dataset->row(2)), ElementsAre('f', 'g', 'j', 'k'));
  EXPECT_THAT(Tokens(opened.dataset->row(3)), ElementsAre('l', kEos));
  EXPECT_EQ(opened.dataset->row(3).line, 2);
  EXPECT_EQ(opened.counts.rows_split, 1);
  EXPECT_EQ(opened.counts.tokens_lost, 0);
  EXPECT_EQ(opened.counts.labels_lost, 2);  // the first token of the second and third piece
  EXPECT_THAT(opened.counts.ToString(), HasSubstr("1 rows split"));

  // A last piece of one token has no label.
  opened = OpenData({path}, {.max_length = 9, .overlong = Overlong::kSplit});
  ASSERT_TRUE(opened.dataset.ok());
  EXPECT_EQ(opened.dataset->rows(), 3);
  EXPECT_EQ(opened.counts.pieces_without_labels, 1);
  EXPECT_EQ(opened.counts.tokens_lost, 1);
}

TEST(DatasetTest, BooksAreSplitByDefaultAndKnowTheirLines) {
  const Scratch scratch;
  const std::string path = scratch.Write("a.txt", "abcd\nfg\nh");
  Opened opened = OpenData({path}, {.max_length = 4});
  ASSERT_TRUE(opened.dataset.ok()) << opened.dataset.status();
  ASSERT_EQ(opened.dataset->rows(), 3);
  EXPECT_THAT(Tokens(opened.dataset->row(0)), ElementsAre(kBos, 'a', 'b', 'c'));
  EXPECT_THAT(Tokens(opened.dataset->row(2)), ElementsAre('\n', 'h', kEos));
  EXPECT_EQ(opened.dataset->row(0).line, 1);
  EXPECT_EQ(opened.dataset->row(1).line, 1);
  EXPECT_EQ(opened.dataset->row(2).line, 2);
  EXPECT_EQ(opened.counts.rows, 1);
  EXPECT_EQ(opened.counts.rows_split, 1);

  opened = OpenData({path}, {.max_length = 4, .overlong = Overlong::kError});
  EXPECT_THAT(Text(opened.violations), HasSubstr("a.txt: has 11 tokens, more than max_length 4"));
}

TEST(DatasetTest, RowsThatTrainNothingAreFaults) {
  const Scratch scratch;
  const std::string path = scratch.Write("a.jsonl",
                                         R"({"messages": [{"role": "user", "content": "a"}]}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}
{"messages": [{"role": "user", "content": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, {"role": "assistant", "content": "b"}]}
)");
  Opened opened = OpenData({path}, {.max_length = 40, .overlong = Overlong::kTruncate});
  EXPECT_EQ(opened.violations.total(), 3) << Text(opened.violations);
  EXPECT_THAT(Text(opened.violations),
              HasSubstr("a.jsonl:1: no token of the row would be trained"));
  EXPECT_THAT(Text(opened.violations),
              HasSubstr("a.jsonl:2: no token of the row would be trained"));
  EXPECT_THAT(
      Text(opened.violations),
      HasSubstr("more than max_length 40, and every trained token would be lost by truncating"));
  // Trained on everything, the first two are fine.
  opened = OpenData({path}, {.max_length = 400, .loss_on = LossOn::kAll});
  EXPECT_TRUE(opened.dataset.ok()) << opened.dataset.status();
}

TEST(DatasetTest, AllFilesAreCheckedAtOnce) {
  const Scratch scratch;
  const Opened opened =
      OpenData({scratch.Write("a.jsonl", "{\"text\": 1}\n{\"text\": \"\"}\n"),
                (scratch / "absent.jsonl").string(), scratch.Write("b.jsonl", "{}\n")},
               {.max_length = 8, .field = "data.eval"});
  const std::string text = Text(opened.violations);
  EXPECT_THAT(text, HasSubstr("data.eval[0]: "));
  EXPECT_THAT(text, HasSubstr("a.jsonl:1: text: must be a string, found 1"));
  EXPECT_THAT(text, HasSubstr("data.eval[1].path: cannot open "));
  EXPECT_THAT(text, HasSubstr("data.eval[2]: "));
  EXPECT_THAT(std::string(opened.dataset.status().message()), HasSubstr("absent.jsonl"));
}

TEST(DatasetTest, CacheIsUsedAndKeyedByOptions) {
  const Scratch scratch;
  const std::string path = scratch.Write("a.jsonl", kOverlong);
  DatasetOptions options{.max_length = 16, .cache_dir = scratch / "cache"};
  Opened first = OpenData({path}, options);
  ASSERT_TRUE(first.dataset.ok()) << first.dataset.status();
  EXPECT_EQ(first.counts.files_from_cache, 0);
  Opened second = OpenData({path}, options);
  ASSERT_TRUE(second.dataset.ok());
  EXPECT_EQ(second.counts.files_from_cache, 1);
  EXPECT_EQ(second.counts.rows, first.counts.rows);
  EXPECT_EQ(second.counts.labels, first.counts.labels);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(Tokens(first.dataset->row(i)), Tokens(second.dataset->row(i)));
    EXPECT_EQ(first.dataset->row(i).line, second.dataset->row(i).line);
  }
  // A copy of the file is the same data.
  EXPECT_EQ(OpenData({scratch.Write("copy.jsonl", kOverlong)}, options).counts.files_from_cache, 1);

  options.max_length = 17;
  EXPECT_EQ(OpenData({path}, options).counts.files_from_cache, 0);
  options.loss_on = LossOn::kAll;
  EXPECT_EQ(OpenData({path}, options).counts.files_from_cache, 0);
  options.overlong = Overlong::kDrop;
  EXPECT_EQ(OpenData({path}, options).counts.files_from_cache, 0);
  scratch.Write("a.jsonl", std::string(kOverlong) + "{\"text\": \"new\"}\n");
  const Opened changed = OpenData({path}, options);
  EXPECT_EQ(changed.counts.files_from_cache, 0);
  EXPECT_EQ(changed.dataset->rows(), 4);
}

TEST(DatasetTest, FaultyFilesLeaveNothingInTheCache) {
  const Scratch scratch;
  const Opened opened =
      OpenData({scratch.Write("a.jsonl", "{\"text\": \"fine\"}\n{\"text\": 1}\n")},
               {.max_length = 16, .cache_dir = scratch / "cache"});
  EXPECT_FALSE(opened.dataset.ok());
  EXPECT_TRUE(std::filesystem::is_empty(scratch / "cache"));
}

TEST(DatasetTest, TokenizerThatDoesNotFitTheEmbedding) {
  const Scratch scratch;
  const std::string path = scratch.Write("a.jsonl", "{\"text\": \"a\"}\n");
  // EOS is outside, which needs no reading.
  Opened opened = OpenData({(scratch / "absent").string()}, {.max_length = 8, .vocabulary = 266});
  EXPECT_EQ(Text(opened.violations),
            "model.path: the tokenizer's EOS is token 266, but the model's embedding has 266 "
            "entries: the "
            "tokenizer does not fit the model\n");
  // The tokenizer knows more names than the embedding, but no row uses them.
  opened = OpenData({path}, {.max_length = 8, .vocabulary = 267});
  EXPECT_TRUE(opened.dataset.ok()) << opened.dataset.status();
  // The template uses one: said once.
  const std::string row = R"({"messages": [{"role": "assistant", "content": "b"}]})"
                          "\n";
  opened = OpenData({scratch.Write("b.jsonl", row + row)}, {.max_length = 80, .vocabulary = 267});
  ASSERT_EQ(opened.violations.total(), 1);
  EXPECT_THAT(Text(opened.violations),
              HasSubstr("b.jsonl:1: has token 267, but the model's embedding has 267 entries"));
}

TEST(DatasetTest, UnrenderedToolCallsAreCounted) {
  const Scratch scratch;
  const std::filesystem::path model = scratch / "model";
  const std::filesystem::path tiny =
      std::filesystem::path(LEMO_SOURCE_DIR) / "tests/fixtures/data/tiny_model";
  std::filesystem::copy(tiny, model);
  std::ofstream(model / "chat_template.jinja") << "{% for m in messages %}{{ '<|im_start|>' + "
                                                  "m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
                                                  "{% endfor %}";
  const Opened opened = OpenData(
      {scratch.Write("a.jsonl",
                     R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant",
 "tool_calls": [{"type": "function", "function": {"name": "find_it", "arguments": "{}"}}]},
 {"role": "assistant", "content": "done"}]})"
                     "\n")},
      {.max_length = 200}, *text::ModelText::Load(model));
  // The row has line breaks inside: it is three faulty lines, not one row.
  EXPECT_FALSE(opened.dataset.ok());

  std::string row =
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": )"
      R"([{"type": "function", "function": {"name": "find_it", "arguments": "{}"}}]}]})";
  const Opened fine =
      OpenData({scratch.Write("b.jsonl", row)}, {.max_length = 200}, *text::ModelText::Load(model));
  ASSERT_TRUE(fine.dataset.ok()) << fine.dataset.status();
  EXPECT_EQ(fine.counts.rows_with_unrendered_tool_calls, 1);
  EXPECT_THAT(fine.counts.ToString(), HasSubstr("tool calls the chat template does not show"));
}

TEST(DatasetTest, ConversationsNeedATemplateAndBooksHaveNoAssistant) {
  const Scratch scratch;
  const std::filesystem::path model = scratch / "model";
  std::filesystem::create_directories(model);
  std::filesystem::copy(
      std::filesystem::path(LEMO_SOURCE_DIR) / "tests/fixtures/data/tiny_model/tokenizer.json",
      model / "tokenizer.json");
  const std::string row = R"({"messages": [{"role": "assistant", "content": "b"}]})";
  Opened opened = OpenData({scratch.Write("a.jsonl", row + "\n" + row + "\n")}, {.max_length = 80},
                           *text::ModelText::Load(model));
  EXPECT_EQ(opened.violations.total(), 1);
  EXPECT_THAT(Text(opened.violations),
              HasSubstr("a.jsonl:1: the row is a conversation, but the model "
                        "has no chat template"));
  opened = OpenData({scratch.Write("a.txt", "prose")},
                    {.max_length = 80, .loss_on = LossOn::kAssistant});
  EXPECT_THAT(Text(opened.violations), HasSubstr("plain text has no assistant's part"));
}

}  // namespace
}  // namespace lemo::train
