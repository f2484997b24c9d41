#include "text/tokenizer.h"

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/text/text_data.h"

namespace lemo::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int32_t> Ids(const Tokenizer& tokenizer, const std::string& text,
                         bool add_special_tokens = false) {
  const absl::StatusOr<Encoding> encoding = tokenizer.Encode(text, add_special_tokens);
  EXPECT_TRUE(encoding.ok()) << encoding.status();
  return encoding.ok() ? encoding->ids : std::vector<int32_t>{-1};
}

Tokenizer Stories() { return *Tokenizer::Load(Fixtures() / "stories260k/tokenizer.json"); }
Tokenizer Small() { return *Tokenizer::Load(Fixtures() / "tiktoken-small/tokenizer.json"); }

// Every text gives its ids; the ids decode to the text.
void ExpectVectors(const std::filesystem::path& folder) {
  const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::Load(folder / "tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto vectors = ReadJson(folder / "expected.json");
  ASSERT_FALSE(vectors.empty());
  for (const auto& vector : vectors) {
    const std::string text = vector["text"];
    const std::vector<int32_t> ids = vector["ids"];
    EXPECT_EQ(Ids(*tokenizer, text), ids) << text;
    EXPECT_EQ(*tokenizer->Decode(ids, false), text);
  }
}

TEST(TokenizerVectors, TiktokenSmall) { ExpectVectors(Fixtures() / "tiktoken-small"); }

TEST(TokenizerVectors, Stories260k) {
  const Tokenizer tokenizer = Stories();
  const auto vectors = ReadJson(Fixtures() / "stories260k/expected/tokens.json");
  ASSERT_EQ(vectors.size(), 66u);
  for (const auto& vector : vectors) {
    EXPECT_EQ(Ids(tokenizer, vector["text"]),
              vector["tokenizer_json_ids"].get<std::vector<int32_t>>())
        << vector["text"];
  }
}

TEST(TokenizerVectors, Novelist) {
  const std::filesystem::path examples = std::filesystem::path(LEMO_SOURCE_DIR) / "examples";
  const auto expected = ReadJson(examples / "models/novelist-3m/expected.json");
  const std::vector<int32_t> first = expected["Conrad_Almayer_1895 first 24 ids"];
  const Tokenizer tokenizer = *Tokenizer::Load(examples / "models/novelist-3m/tokenizer.json");
  std::vector<int32_t> ids =
      Ids(tokenizer, "ALMAYER'S FOLLY: A STORY OF AN EASTERN RIVER\nby Joseph Conrad\n");
  ASSERT_GE(ids.size(), first.size());
  ids.resize(first.size());
  EXPECT_EQ(ids, first);
}

// Tokenizers that are not shipped.
class SharedVectors : public ::testing::TestWithParam<std::string> {};
TEST_P(SharedVectors, Hold) { ExpectVectors(SharedData() / "tokenizers" / GetParam()); }
INSTANTIATE_TEST_SUITE_P(Shared, SharedVectors,
                         ::testing::ValuesIn(PresentTokenizers({"gpt2", "llama2", "llama3", "qwen2",
                                                                "tiktoken-small"})),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(SharedVectors);

TEST(Tokenizer, AddsSpecialTokensOnlyWhenAsked) {
  EXPECT_EQ(Ids(Stories(), "Hello world", true),
            (std::vector<int32_t>{1, 346, 306, 414, 263, 304, 341}));
  EXPECT_EQ(Ids(Stories(), "Hello world", false),
            (std::vector<int32_t>{346, 306, 414, 263, 304, 341}));
}

TEST(Tokenizer, RecognisesSpecialTokensInText) {
  const Tokenizer tokenizer = Small();
  const Encoding encoding = *tokenizer.Encode("<|eot_id|>hé<|eot_id|>", false);
  ASSERT_GE(encoding.ids.size(), 3u);
  EXPECT_EQ(encoding.ids.front(), 128009);
  EXPECT_EQ(encoding.ids.back(), 128009);
  EXPECT_EQ(*tokenizer.Decode(encoding.ids, true), "hé");
  EXPECT_EQ(*tokenizer.Decode(encoding.ids, false), "<|eot_id|>hé<|eot_id|>");
  EXPECT_TRUE(tokenizer.IsSpecial(128009));
  EXPECT_FALSE(tokenizer.IsSpecial(65));
  EXPECT_FALSE(tokenizer.IsSpecial(-1));
}

TEST(Tokenizer, OffsetsAreBytes) {
  // é and 🦙 take two and four bytes; the pieces of a character share its range.
  const Encoding encoding = *Small().Encode("é🦙<|eot_id|>", false);
  ASSERT_EQ(encoding.offsets.size(), encoding.ids.size());
  EXPECT_EQ(encoding.offsets.front().begin, 0u);
  EXPECT_EQ(encoding.offsets.back().begin, 6u);
  EXPECT_EQ(encoding.offsets.back().end, 16u);
  const Encoding with_bos = *Small().Encode("a", true);
  EXPECT_EQ(with_bos.ids.front(), 128000);
  EXPECT_EQ(with_bos.offsets.front().end, 0u);
}

TEST(Tokenizer, NamesIdsBothWays) {
  const Tokenizer tokenizer = Stories();
  EXPECT_EQ(tokenizer.vocabulary_size(), 512);
  EXPECT_EQ(Small().vocabulary_size(), 128011);
  EXPECT_EQ(tokenizer.TokenToId("</s>"), 2);
  EXPECT_EQ(tokenizer.TokenToId("no such token"), -1);
  EXPECT_EQ(tokenizer.TokenToId("\xff"), -1);
  EXPECT_EQ(*tokenizer.IdToToken(2), "</s>");
  EXPECT_TRUE(absl::IsNotFound(tokenizer.IdToToken(512).status()));
  EXPECT_TRUE(absl::IsNotFound(tokenizer.IdToToken(-1).status()));
}

TEST(Tokenizer, RefusesWhatIsNotUtf8) {
  const absl::Status status = Stories().Encode("ab\xff", false).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.message(), HasSubstr("byte 2"));
}

TEST(Tokenizer, RefusesIdsOutsideOfTheVocabulary) {
  EXPECT_TRUE(absl::IsInvalidArgument(Stories().Decode({1, 512}, false).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Stories().Decode({-1}, false).status()));
}

TEST(Tokenizer, IgnoresTruncationAndPaddingOfTheFile) {
  auto json = ReadJson(Fixtures() / "stories260k/tokenizer.json");
  json["truncation"] = {
      {"direction", "Right"}, {"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  json["padding"] = {{"strategy", {{"Fixed", 9}}},
                     {"direction", "Right"},
                     {"pad_id", 0},
                     {"pad_type_id", 0},
                     {"pad_token", "<unk>"}};
  json["padding"]["pad_to_multiple_of"] = nullptr;
  const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::Parse(json.dump(), "test");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Ids(*tokenizer, "Hello world").size(), 6u);
}

TEST(Tokenizer, LoadNamesTheFileAndTheReason) {
  EXPECT_TRUE(absl::IsNotFound(Tokenizer::Load("/nowhere/tokenizer.json").status()));
  const auto folder = Scratch(::testing::TempDir(), "tokenizer_load");
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("{\"model\": {}}"),
        std::string(100'000, '['), std::string("\xff\xfe")}) {
    WriteText(folder / "tokenizer.json", text);
    const absl::Status status = Tokenizer::Load(folder / "tokenizer.json").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr((folder / "tokenizer.json").string()));
  }
}

TEST(Tokenizer, RefusesIdsThatDoNotFit) {
  auto json = ReadJson(Fixtures() / "stories260k/tokenizer.json");
  json["model"]["vocab"]["huge"] = 4294967295u;
  EXPECT_TRUE(absl::IsInvalidArgument(Tokenizer::Parse(json.dump(), "test").status()));
}

// Anything that is UTF-8 decodes back; anything else is refused; nothing crashes.
TEST(Tokenizer, RandomBytes) {
  constexpr uint32_t kSeed = 20261121;
  std::cerr << "seed " << kSeed << "\n";
  std::mt19937 random(kSeed);
  const Tokenizer small = Small();
  const Tokenizer stories = Stories();
  int valid = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text(random() % 40, '\0');
    const bool ascii = round % 2 == 0;
    for (char& c : text) c = static_cast<char>(random() % (ascii ? 128 : 256));
    const absl::StatusOr<Encoding> encoding = small.Encode(text, false);
    if (!encoding.ok()) {
      EXPECT_TRUE(absl::IsInvalidArgument(encoding.status()));
      EXPECT_FALSE(ascii) << encoding.status();
      EXPECT_FALSE(stories.Encode(text, true).ok());
      continue;
    }
    ++valid;
    EXPECT_EQ(*small.Decode(encoding->ids, false), text);
    EXPECT_TRUE(stories.Encode(text, true).ok());
    for (const Encoding::Range& range : encoding->offsets) {
      EXPECT_LE(range.begin, range.end);
      EXPECT_LE(range.end, text.size());
    }
  }
  EXPECT_GT(valid, 1500);
}

// A tokenizer.json with random damage either loads or is refused.
TEST(Tokenizer, DamagedFiles) {
  constexpr uint32_t kSeed = 7;
  std::cerr << "seed " << kSeed << "\n";
  std::mt19937 random(kSeed);
  const std::string whole = ReadText(Fixtures() / "stories260k/tokenizer.json");
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    std::string damaged = whole;
    for (int i = 0; i < 3; ++i) {
      damaged[random() % damaged.size()] = static_cast<char>(random() % 128);
    }
    const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::Parse(damaged, "damaged");
    if (tokenizer.ok()) {
      (void)tokenizer->Encode("Once upon a time ü", true);
    } else {
      ++refused;
      EXPECT_TRUE(absl::IsInvalidArgument(tokenizer.status())) << tokenizer.status();
    }
  }
  EXPECT_GT(refused, 10);
}

TEST(Tokenizer, ManyThreads) {
  const Tokenizer tokenizer = Small();
  const std::string text =
      "I can see the sun. But even if I cannot see the sun, I know that it exists.";
  const std::vector<int32_t> expected = Ids(tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) equal[t] += tokenizer.Encode(text, false)->ids == expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(equal, ElementsAre(200, 200, 200, 200));
}

}  // namespace
}  // namespace lemo::text
