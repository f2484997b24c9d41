#include "worker/train/data/preview.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/data/scratch.h"

namespace lemo::train {
namespace {

using ::testing::HasSubstr;

TEST(PreviewTest, MarksTrainedText) {
  const Scratch scratch;
  const std::string path = scratch.Write(
      "a.jsonl",
      R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo é"}]})"
      "\n"
      R"({"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "\u001b[2J"}]})"
      "\n");
  const text::ModelText text = TinyModel();
  const Opened opened = OpenData({path}, {.max_length = 100}, text);
  ASSERT_TRUE(opened.dataset.ok()) << opened.dataset.status();
  const absl::StatusOr<std::string> preview = PreviewRows(*opened.dataset, text, {.rows = 5});
  ASSERT_TRUE(preview.ok()) << preview.status();
  EXPECT_THAT(*preview, HasSubstr("--- " + path + ":1: "));
  EXPECT_THAT(*preview, HasSubstr("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
                                  "[[Yo é<|im_end|>]]\n"));
  EXPECT_THAT(*preview, HasSubstr("[[\\x1B[2J<|im_end|>]]"));
  const std::string coloured = *PreviewRows(*opened.dataset, text, {.rows = 1, .colour = true});
  EXPECT_THAT(coloured, HasSubstr("\x1b[32mYo é<|im_end|>\x1b[0m"));
  EXPECT_EQ(coloured.find(":2: "), std::string::npos);
  EXPECT_THAT(*PreviewRows(*opened.dataset, text, {.rows = 1, .max_tokens = 5}),
              HasSubstr("more tokens\n"));
}

}  // namespace
}  // namespace lemo::train
