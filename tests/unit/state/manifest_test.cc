#include "worker/train/state/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_replace.h"

namespace lemo::train {
namespace {

using testing::HasSubstr;

Manifest Example() {
  return {.step = 12,
          .created = "2026-01-31T12:00:00Z",
          .eval_loss = 2.3125,
          .files = {{"state.json", {.size = 3, .sha256 = "aa"}},
                    {"trainables.safetensors", {.size = 400, .sha256 = "bb"}}}};
}

TEST(Manifest, ReadsWhatItWrote) {
  const auto read = ParseManifest(ManifestToJson(Example()), "m");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->step, 12);
  EXPECT_EQ(read->created, "2026-01-31T12:00:00Z");
  EXPECT_EQ(read->eval_loss, 2.3125);
  ASSERT_EQ(read->files.size(), 2u);
  EXPECT_EQ(read->files.at("trainables.safetensors").size, 400);
  EXPECT_EQ(read->files.at("trainables.safetensors").sha256, "bb");
}

TEST(Manifest, ALossKeepsEveryBit) {
  Manifest manifest = Example();
  manifest.eval_loss = 0.1 + 0.2;
  EXPECT_EQ(ParseManifest(ManifestToJson(manifest), "m")->eval_loss, 0.1 + 0.2);
}

TEST(Manifest, ALossThatIsNoNumberIsAbsent) {
  Manifest manifest = Example();
  manifest.eval_loss = std::numeric_limits<double>::quiet_NaN();
  const auto read = ParseManifest(ManifestToJson(manifest), "m");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->eval_loss.has_value());
}

TEST(Manifest, EveryBitThatFlipsAndEveryTruncationIsNoticed) {
  const std::string whole = ManifestToJson(Example());
  for (size_t i = 0; i < whole.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string torn = whole;
      torn[i] = static_cast<char>(torn[i] ^ (1 << bit));
      EXPECT_FALSE(ParseManifest(torn, "m").ok()) << "byte " << i << " bit " << bit;
    }
    // Only the closing newline is not needed.
    if (i + 1 < whole.size()) {
      EXPECT_FALSE(ParseManifest(whole.substr(0, i), "m").ok()) << "cut at " << i;
    }
  }
}

TEST(Manifest, HostileTextIsAnError) {
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("null"), std::string(2'000'000, '['),
        std::string("{\"format\": \"lemo.checkpoint\"}"), std::string("{\"format\": 7}")}) {
    const auto read = ParseManifest(text, "dir/manifest.json");
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("dir/manifest.json"));
  }
}

TEST(Manifest, FilesOutsideTheDirectoryAreRefused) {
  for (const char* name : {"../secret", "/etc/passwd", "..", "."}) {
    Manifest manifest = Example();
    manifest.files[name] = {.size = 1, .sha256 = "cc"};
    EXPECT_FALSE(ParseManifest(ManifestToJson(manifest), "m").ok()) << name;
  }
}

TEST(Manifest, AnotherVersionIsNamed) {
  const std::string json =
      absl::StrReplaceAll(ManifestToJson(Example()), {{"\"version\": 1", "\"version\": 2"}});
  EXPECT_THAT(std::string(ParseManifest(json, "m").status().message()), HasSubstr("version 2"));
}

}  // namespace
}  // namespace lemo::train
