// Our renderings against those of transformers, recorded by record_templates.py.
#include <map>
#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "tests/unit/text/text_data.h"
#include "text/chat_template.h"

namespace lemo::text {
namespace {

TEST(TemplateParity, Transformers) {
  const auto record = ReadJson(std::filesystem::path(LEMO_SOURCE_DIR) /
                               "tests/parity/text/recorded_templates.json");
  std::map<std::string, std::string> sources;
  for (const auto& [name, source] : record["templates"].items()) sources[name] = source;
  for (const std::string& name : PresentTokenizers({"llama3", "qwen2"})) {
    const std::string key = "tokenizers/" + name;
    sources[key] = ReadText(SharedData() / key / "chat_template.jinja");
  }
  std::map<std::string, ChatTemplate> templates;
  for (const auto& [name, source] : sources) {
    const absl::StatusOr<ChatTemplate> compiled = ChatTemplate::Compile(source);
    ASSERT_TRUE(compiled.ok()) << name << ": " << compiled.status();
    templates.emplace(name, *compiled);
  }

  const std::string tools = record["tools"].dump();
  int compared = 0;
  for (const auto& entry : record["cases"]) {
    const auto found = templates.find(entry["template"]);
    if (found == templates.end()) continue;
    const std::string messages = record["conversations"][entry["conversation"]].dump();
    RenderOptions options = {.bos_token = "<s>", .eos_token = "</s>"};
    options.add_generation_prompt = entry["prompt"];
    if (entry["tools"]) options.tools_json = tools;
    const absl::StatusOr<std::string> text = found->second.Render(messages, options);
    const std::string what =
        entry["template"].get<std::string>() + " on " + entry["conversation"].get<std::string>();
    if (entry.contains("error")) {
      EXPECT_TRUE(absl::IsInvalidArgument(text.status())) << what << " gave " << text.value_or("");
    } else if (text.ok()) {
      EXPECT_EQ(*text, entry["text"].get<std::string>()) << what;
    } else {
      ADD_FAILURE() << what << ": " << text.status();
    }
    ++compared;
  }
  EXPECT_GE(compared, 30);
}

}  // namespace
}  // namespace lemo::text
