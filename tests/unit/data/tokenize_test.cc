#include "worker/train/data/tokenize.h"

#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/data/scratch.h"
#include "worker/train/data/book.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The trained tokens' text.
std::string TrainedText(const TokenizedRow& row, const text::ModelText& text) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < row.tokens.size(); ++i) {
    if (row.trained[i] != 0) ids.push_back(row.tokens[i]);
  }
  return *text.tokenizer().Decode(ids, false);
}

TokenizedRow Tokenize(const Row& row, LossOn loss_on = LossOn::kAuto) {
  absl::StatusOr<TokenizedRow> tokenized = TokenizeRow(row, TinyModel(), loss_on);
  EXPECT_TRUE(tokenized.ok()) << tokenized.status();
  EXPECT_EQ(tokenized->tokens.size(), tokenized->trained.size());
  return *std::move(tokenized);
}

TEST(TokenizeTest, CompletionIsTrainedWithItsEnd) {
  Row row{.format = RowFormat::kCompletion, .prompt = "2+2=", .completion = "4"};
  TokenizedRow tokenized = Tokenize(row);
  EXPECT_THAT(tokenized.tokens, ElementsAre(kBos, '2', '+', '2', '=', '4', kEos));
  EXPECT_THAT(tokenized.trained, ElementsAre(0, 0, 0, 0, 0, 1, 1));
  tokenized = Tokenize(row, LossOn::kAll);
  EXPECT_THAT(tokenized.trained, ElementsAre(1, 1, 1, 1, 1, 1, 1));
}

TEST(TokenizeTest, TokenAcrossTheBorderIsTrained) {
  // "th" + "e" is one token "he" after "t": the text is tokenised as a whole.
  const TokenizedRow tokenized =
      Tokenize({.format = RowFormat::kCompletion, .prompt = "xh", .completion = "e"});
  EXPECT_THAT(tokenized.tokens, ElementsAre(kBos, 'x', 257, kEos));
  EXPECT_THAT(tokenized.trained, ElementsAre(0, 0, 1, 1));
}

TEST(TokenizeTest, EmptyPromptTrainsEverything) {
  const TokenizedRow tokenized =
      Tokenize({.format = RowFormat::kCompletion, .prompt = "", .completion = "b"});
  EXPECT_THAT(tokenized.tokens, ElementsAre(kBos, 'b', kEos));
  EXPECT_THAT(std::vector<uint8_t>(tokenized.trained.begin() + 1, tokenized.trained.end()),
              ElementsAre(1, 1));
}

TEST(TokenizeTest, SpeltSpecialTokensAreNotDoubled) {
  EXPECT_THAT(Tokenize({.format = RowFormat::kText, .text = "a"}).tokens,
              ElementsAre(kBos, 'a', kEos));
  EXPECT_THAT(Tokenize({.format = RowFormat::kText, .text = "<|bos|>a<|eos|>"}).tokens,
              ElementsAre(kBos, 'a', kEos));
}

TEST(TokenizeTest, ChatTrainsAssistantTurns) {
  const text::ModelText text = TinyModel();
  Row row{.format = RowFormat::kChat,
          .messages_json = R"([{"role":"user","content":"a"},{"role":"assistant","content":"bc"},
              {"role":"user","content":"d"},{"role":"assistant","content":"ef"}])"};
  EXPECT_EQ(TrainedText(Tokenize(row), text), "bc<|im_end|>ef<|im_end|>");
  row.weights = {1, 0, 1, 1};
  EXPECT_EQ(TrainedText(Tokenize(row), text), "ef<|im_end|>");
  row.weights = {};
  const TokenizedRow all = Tokenize(row, LossOn::kAll);
  EXPECT_EQ(std::count(all.trained.begin(), all.trained.end(), 0), 0);
}

TEST(TokenizeTest, TemplateThatRefusesSaysSo) {
  const absl::StatusOr<TokenizedRow> tokenized = TokenizeRow(
      {.format = RowFormat::kChat, .messages_json = R"([{"role":"user","content":"refuse me"}])"},
      TinyModel(), LossOn::kAuto);
  EXPECT_TRUE(absl::IsInvalidArgument(tokenized.status()));
  EXPECT_THAT(std::string(tokenized.status().message()), HasSubstr("this conversation is refused"));
}

TEST(TokenizeTest, KnowsWhetherToolCallsAreRendered) {
  Row row{.format = RowFormat::kChat,
          .messages_json = R"([{"role":"assistant","content":"","tool_calls":[{"type":"function",
              "function":{"name":"find_it","arguments":{"x":1}}}]}])",
          .called_functions = {"find_it"}};
  EXPECT_TRUE(RendersToolCalls(row, TinyModel()));
  EXPECT_EQ(TrainedText(Tokenize(row), TinyModel()), "<call>find_it{\"x\": 1}</call><|im_end|>");
  row.called_functions = {"other"};
  EXPECT_FALSE(RendersToolCalls(row, TinyModel()));
}

struct Book {
  std::vector<int32_t> tokens;
  std::vector<int64_t> lines;
  absl::Status status;
  int64_t fault_line = 0;
};

Book ReadBook(const std::string& path, const text::Tokenizer& tokenizer, BookOptions options) {
  Book book;
  book.status = TokenizeBook(
      path, tokenizer, options,
      [&](std::span<const int32_t> tokens, std::span<const int64_t> lines) {
        book.tokens.insert(book.tokens.end(), tokens.begin(), tokens.end());
        book.lines.insert(book.lines.end(), lines.begin(), lines.end());
        return absl::OkStatus();
      },
      &book.fault_line);
  return book;
}

std::string RandomProse(uint32_t seed, size_t words) {
  const std::vector<std::string> parts = {
      "the", "you",          "in",           "on", " ",  "\n",     "\n\n",
      "   ", "na\xC3\xAFve", "\xE2\x82\xAC", ",",  "'s", "123456", "\xF0\x9F\x98\x80",
      "\r\n"};
  std::mt19937 random(seed);
  std::string out;
  for (size_t i = 0; i < words; ++i) {
    out += parts[random() % parts.size()];
    if (random() % 2 == 0) out += ' ';
  }
  return out;
}

TEST(BookTest, WindowsGiveTheTokensOfTheWhole) {
  const Scratch scratch;
  std::vector<text::Tokenizer> tokenizers = {TinyModel().tokenizer()};
  for (const char* name : {"tests/fixtures/stories260k", "tests/fixtures/tiktoken-small"}) {
    tokenizers.push_back(
        *text::Tokenizer::Load(std::filesystem::path(LEMO_SOURCE_DIR) / name / "tokenizer.json"));
  }
  for (uint32_t seed = 0; seed < 6; ++seed) {
    const std::string prose = RandomProse(seed, 4000);
    const std::string path = scratch.Write("book.txt", prose);
    for (size_t i = 0; i < tokenizers.size(); ++i) {
      const text::Encoding whole = *tokenizers[i].Encode(prose, false);
      for (const int64_t window : {1 << 20, 4096, 1031}) {
        SCOPED_TRACE("seed " + std::to_string(seed) + ", tokenizer " + std::to_string(i) +
                     ", window " + std::to_string(window));
        const Book book = ReadBook(path, tokenizers[i], {window, window / 4});
        ASSERT_TRUE(book.status.ok()) << book.status;
        ASSERT_EQ(book.tokens, whole.ids);
        for (size_t t = 0; t < whole.ids.size(); t += 37) {
          ASSERT_EQ(book.lines[t],
                    1 + std::count(prose.begin(), prose.begin() + whole.offsets[t].begin, '\n'));
        }
      }
    }
  }
}

TEST(BookTest, TextWithoutAgreementIsStillAllThere) {
  // One word without end: byte-level BPE may merge it otherwise from another start.
  const Scratch scratch;
  const std::string text = std::string(20'000, 'o') + std::string(20'000, '\n');
  const Book book = ReadBook(scratch.Write("book.txt", text), TinyModel().tokenizer(), {256, 64});
  ASSERT_TRUE(book.status.ok()) << book.status;
  EXPECT_EQ(*TinyModel().tokenizer().Decode(book.tokens, false), text);
}

TEST(BookTest, FaultNamesTheLine) {
  const Scratch scratch;
  std::string text = RandomProse(1, 3000);
  const size_t at = text.size() / 2;
  text.insert(text.find('\n', at) + 1, "\xC3(");
  const Book book = ReadBook(scratch.Write("book.txt", text), TinyModel().tokenizer(), {512, 64});
  EXPECT_TRUE(absl::IsInvalidArgument(book.status));
  EXPECT_EQ(book.fault_line,
            1 + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(text.find("\xC3(")),
                           '\n'));
}

}  // namespace
}  // namespace lemo::train
