#include "worker/train/publish/export_extras.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/publish/sample.h"
#include "worker/train/publish/json_file.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

OrderedJson Json(const fs::path& path) {
  const auto json = ReadJsonObject(path);
  EXPECT_TRUE(json.ok()) << json.status();
  return json.ok() ? *json : OrderedJson::object();
}

class ExportExtrasTest : public testing::Test {
 protected:
  void Write(const ExportExtras& extras) {
    fs::remove_all(out_);
    fs::create_directories(out_);
    const absl::Status status = WriteTextFiles(extras, out_);
    ASSERT_TRUE(status.ok()) << status;
  }
  void ExpectTemplate(const std::string& source) {
    EXPECT_EQ(ReadText(out_ / "chat_template.jinja"), source);
    EXPECT_EQ(Json(out_ / "tokenizer_config.json")["chat_template"], source);
  }

  const ScratchDir scratch_;
  const fs::path base_ = WriteBaseModel(scratch_.path() / "base");
  const fs::path out_ = scratch_.path() / "out";
};

TEST_F(ExportExtrasTest, CopiesWhatBelongsToTheTokenizerAndNothingElse) {
  Write({.model_dir = base_});
  EXPECT_THAT(Names(out_),
              ElementsAre("chat_template.jinja", "generation_config.json",
                          "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "generation_config.json"}) {
    EXPECT_EQ(ReadText(out_ / name), ReadText(base_ / name)) << name;
  }
}

TEST_F(ExportExtrasTest, TheTemplateIsWrittenInBothSpellings) {
  Write({.model_dir = base_});
  ExpectTemplate("inline");
  Write({.model_dir = base_, .chat_template = "the run's"});
  ExpectTemplate("the run's");
  EXPECT_EQ(Json(out_ / "tokenizer_config.json")["eos_token"], "</s>");
  WriteText(base_ / "chat_template.jinja", "the file's, which wins");
  Write({.model_dir = base_});
  ExpectTemplate("the file's, which wins");
}

TEST_F(ExportExtrasTest, NamedTemplatesKeepTheirPlaces) {
  WriteText(base_ / "tokenizer_config.json",
            R"({"chat_template": [{"name": "tool_use", "template": "tools"},
                                  {"name": "default", "template": "old"}]})");
  WriteText(base_ / "additional_chat_templates" / "rag.jinja", "rag");
  Write({.model_dir = base_, .chat_template = "new"});
  const OrderedJson templates = Json(out_ / "tokenizer_config.json")["chat_template"];
  ASSERT_EQ(templates.size(), 2u);
  EXPECT_EQ(templates[0]["template"], "tools");
  EXPECT_EQ(templates[1]["template"], "new");
  EXPECT_EQ(ReadText(out_ / "chat_template.jinja"), "new");
  EXPECT_EQ(ReadText(out_ / "additional_chat_templates" / "rag.jinja"), "rag");
}

TEST_F(ExportExtrasTest, AModelWithoutTextFilesGivesNone) {
  Write({.model_dir = scratch_.path() / "absent"});
  EXPECT_THAT(Names(out_), testing::IsEmpty());
}

TEST_F(ExportExtrasTest, TheEndTokenJoinsTheOthers) {
  const auto ends = [this] { return Json(out_ / "generation_config.json")["eos_token_id"]; };
  Write({.model_dir = base_, .end_token_id = 2});
  EXPECT_EQ(ends(), 2);
  Write({.model_dir = base_, .end_token_id = 7});
  EXPECT_EQ(ends(), OrderedJson::parse("[2, 7]"));
  EXPECT_EQ(Json(out_ / "generation_config.json")["do_sample"], false);
  WriteText(base_ / "generation_config.json", "{\"eos_token_id\": [1, 7]}");
  Write({.model_dir = base_, .end_token_id = 7});
  EXPECT_EQ(ends(), OrderedJson::parse("[1, 7]"));
  fs::remove(base_ / "generation_config.json");
  Write({.model_dir = base_, .end_token_id = 7});
  EXPECT_EQ(ends(), 7);
}

TEST_F(ExportExtrasTest, ATornTokenizerConfigIsAnErrorWithItsPath) {
  for (const std::string& text :
       {std::string("{\"a\": "), std::string("[1]"), "{\"a\": " + std::string(1'000'000, '[')}) {
    WriteText(base_ / "tokenizer_config.json", text);
    fs::create_directories(out_);
    const absl::Status status = WriteTextFiles({.model_dir = base_}, out_);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("base/tokenizer_config.json"));
  }
}

TEST_F(ExportExtrasTest, TheRunFileHoldsSpecAndHash) {
  fs::create_directories(out_);
  ASSERT_TRUE(WriteRunFile(SampleExtras(base_), out_).ok());
  const OrderedJson run = Json(out_ / "lemo_run.json");
  EXPECT_EQ(run["chat_template_sha256"], "abc");
  EXPECT_EQ(run["spec"]["train"]["steps"], 40);
  EXPECT_EQ(run["lemo_version"], "0.1.0");
}

TEST_F(ExportExtrasTest, TheModelCardQuotesWhatItIsGiven) {
  fs::create_directories(out_);
  ASSERT_TRUE(WriteModelCard({.title = "T",
                              .base_model = "a \"b\"",
                              .library = "peft",
                              .tags = {"lora"},
                              .usage = "load()\n"},
                             SampleExtras(base_), out_)
                  .ok());
  const std::string card = ReadText(out_ / "README.md");
  EXPECT_THAT(card, testing::StartsWith("---\nbase_model: \"a \\\"b\\\"\"\nlibrary_name: peft\n"));
  EXPECT_THAT(card, HasSubstr("load()\n```"));
  EXPECT_THAT(card, HasSubstr("| Rows \\| kept | 7 8 |\n"));
}

}  // namespace
}  // namespace lemo::train
