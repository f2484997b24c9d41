#include "text/model_text.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/text/text_data.h"

namespace lemo::text {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

// Llama 3's format.
constexpr char kLlama3[] =
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% "
    "endif %}";

// Like Qwen 3's: earlier reasoning is dropped, and the last answer always has a block of it.
constexpr char kReasoning[] = R"(
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set thought = '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\n' + thought + '\n</think>\n' }}
    {%- endif %}
    {{- content }}
    {%- for call in message.tool_calls or [] %}
        {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}' }}
    {%- endfor %}
    {{- '<|eot_id|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n' }}
{%- endif %}
)";

// Like Mistral's: no generation prompt, no end token but eos, and tools stand before the last
// question.
constexpr char kInstruct[] = R"(
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.index0 >= messages | length - 2 %}
            {{- '[TOOLS]' + tools | tojson + '[/TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
)";

// No generation prompt and a header before each turn.
constexpr char kHeaders[] =
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}";

// A model directory with the small tokenizer.
std::filesystem::path ModelDir(const std::string& name, const std::string& chat_template) {
  const auto folder = Scratch(::testing::TempDir(), name);
  std::filesystem::copy(Fixtures() / "tiktoken-small/tokenizer.json", folder / "tokenizer.json");
  WriteText(folder / "tokenizer_config.json",
            R"({"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>"}})");
  if (!chat_template.empty()) WriteText(folder / "chat_template.jinja", chat_template);
  return folder;
}

ModelText Load(const std::string& chat_template) {
  static int count = 0;
  return *ModelText::Load(ModelDir(std::string("chat") + std::to_string(++count), chat_template));
}

Json Message(const std::string& role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

// The trained runs of tokens as text, each in brackets.
std::string Trained(const ModelText& model, const Json& messages, const ChatOptions& options = {}) {
  const absl::StatusOr<ChatTokens> tokens = model.EncodeChat(messages.dump(), options);
  if (!tokens.ok()) return std::string(tokens.status().message());
  EXPECT_EQ(tokens->ids.size(), tokens->trained.size());
  std::string text;
  std::vector<int32_t> run;
  for (size_t i = 0; i <= tokens->ids.size(); ++i) {
    if (i < tokens->ids.size() && tokens->trained[i] != 0) {
      run.push_back(tokens->ids[i]);
    } else if (!run.empty()) {
      text += std::string("[") + *model.tokenizer().Decode(run, false) + "]";
      run.clear();
    }
  }
  return text;
}

const Json& TwoTurns() {
  static const Json messages = {Message("system", "Be brief."), Message("user", "One?"),
                                Message("assistant", "  Yes. "), Message("user", "Two?"),
                                Message("assistant", "No.")};
  return messages;
}

TEST(ModelTextLoad, Stories260k) {
  const absl::StatusOr<ModelText> model = ModelText::Load(Fixtures() / "stories260k");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->bos_token(), "<s>");
  EXPECT_EQ(model->bos_id(), 1);
  EXPECT_EQ(model->eos_token(), "</s>");
  EXPECT_EQ(model->eos_id(), 2);
  EXPECT_TRUE(model->adds_bos());
  EXPECT_FALSE(model->chat_template().has_value());
  EXPECT_EQ(model->tokenizer_hash(),
            "0526f2ffacf1e67d02e77fd589e7506db12af58c142fcd3c91031353694bf8d0");
  EXPECT_TRUE(absl::IsFailedPrecondition(model->EncodeChat("[]", {}).status()));
}

TEST(ModelTextLoad, Novelist) {
  const absl::StatusOr<ModelText> model =
      ModelText::Load(std::filesystem::path(LEMO_SOURCE_DIR) / "examples/models/novelist-3m");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->eos_token(), "<|endoftext|>");
  EXPECT_EQ(model->eos_id(), 0);
  EXPECT_FALSE(model->adds_bos());
  ASSERT_TRUE(model->chat_template().has_value());
  EXPECT_EQ(
      Trained(*model, {Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "!")}),
      "[Ho<|im_end|>]");
}

TEST(ModelTextLoad, TokensFromTheFirstFileThatKnows) {
  const auto folder = ModelDir("tokens", "");
  ModelText model = *ModelText::Load(folder);
  EXPECT_EQ(model.bos_id(), 128000);
  EXPECT_TRUE(model.adds_bos());
  EXPECT_EQ(model.eos_token(), "<|end_of_text|>");
  EXPECT_EQ(model.eos_id(), 128001);

  // A text outside of the vocabulary gives way to the next file.
  WriteText(folder / "tokenizer_config.json", R"({"bos_token": null, "eos_token": "<nope>"})");
  WriteText(folder / "special_tokens_map.json", R"({"eos_token": {"content": "<|eot_id|>"}})");
  model = *ModelText::Load(folder);
  EXPECT_EQ(model.bos_id(), -1);
  EXPECT_EQ(model.bos_token(), "");
  EXPECT_FALSE(model.adds_bos());
  EXPECT_EQ(model.eos_id(), 128009);

  WriteText(folder / "special_tokens_map.json", "{}");
  WriteText(folder / "generation_config.json", R"({"eos_token_id": [128008, 128009]})");
  model = *ModelText::Load(folder);
  EXPECT_EQ(model.eos_id(), 128008);
  EXPECT_EQ(model.eos_token(), "<|eom_id|>");

  WriteText(folder / "generation_config.json", R"({"eos_token_id": []})");
  WriteText(folder / "config.json", R"({"eos_token_id": 128001, "bos_token_id": -5})");
  model = *ModelText::Load(folder);
  EXPECT_EQ(model.eos_id(), 128001);
  EXPECT_EQ(model.bos_id(), -1);

  WriteText(folder / "config.json", R"({"eos_token_id": 99999999999})");
  model = *ModelText::Load(folder);
  EXPECT_EQ(model.eos_id(), -1);
  EXPECT_EQ(model.eos_token(), "<nope>");
}

TEST(ModelTextLoad, WhereTheTemplateComesFrom) {
  const auto folder = ModelDir("template", "");
  EXPECT_FALSE(ModelText::Load(folder)->chat_template().has_value());
  WriteText(folder / "tokenizer_config.json", R"({"chat_template": "inline"})");
  EXPECT_EQ(ModelText::Load(folder)->chat_template()->source(), "inline");
  WriteText(
      folder / "tokenizer_config.json",
      R"({"chat_template": [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]})");
  EXPECT_EQ(ModelText::Load(folder)->chat_template()->source(), "b");
  WriteText(folder / "chat_template.jinja", "file");
  EXPECT_EQ(ModelText::Load(folder)->chat_template()->source(), "file");
}

TEST(ModelTextLoad, NamesTheFileThatIsWrong) {
  const auto expect = [](const std::filesystem::path& folder, const std::string& file) {
    const absl::Status status = ModelText::Load(folder).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << file << ": " << status;
    EXPECT_THAT(status.message(), HasSubstr((folder / file).string()));
  };
  EXPECT_TRUE(absl::IsNotFound(ModelText::Load("/nowhere").status()));
  for (const std::string file :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "generation_config.json", "config.json"}) {
    for (const std::string contents : {"{", "[]", "\xff", ""}) {
      const auto folder = ModelDir("wrong", "");
      WriteText(folder / file, contents);
      expect(folder, file);
    }
  }
  for (const std::string source : {"5", "[]", R"([{"name": "default"}])", R"("{% if %}")"}) {
    const auto folder = ModelDir("wrong", "");
    WriteText(folder / "tokenizer_config.json", R"({"chat_template": )" + source + "}");
    expect(folder, "tokenizer_config.json");
  }
  expect(ModelDir("wrong", "{% if %}"), "chat_template.jinja");
}

// torchtune counts the role header of a trained turn as trained.
TEST(EncodeChat, TiktokenSmallVectors) {
  const ModelText model = Load(kLlama3);
  int masks = 0;
  for (const Json& vector : ReadJson(Fixtures() / "tiktoken-small/expected_chat.json")) {
    const std::vector<int32_t> ids = vector["ids"];
    const std::string rendered = vector["rendered"];
    EXPECT_EQ(model.tokenizer().Encode(rendered, false)->ids, ids) << vector["name"];
    if (!vector.contains("messages")) continue;
    const std::string messages = vector["messages"].dump();
    EXPECT_EQ(*model.chat_template()->Render(messages, {.bos_token = model.bos_token()}), rendered);
    const absl::StatusOr<ChatTokens> tokens = model.EncodeChat(messages, {.train_header = true});
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ(tokens->ids, ids);
    EXPECT_EQ(tokens->trained, vector["trained"].get<std::vector<uint8_t>>()) << vector["name"];
    ++masks;
  }
  EXPECT_EQ(masks, 2);
}

TEST(EncodeChat, TrainsContentAndEndOfTurn) {
  EXPECT_EQ(Trained(Load(kLlama3), TwoTurns()), "[Yes.<|eot_id|>][No.<|eot_id|>]");
  EXPECT_EQ(Trained(Load(kLlama3), TwoTurns(), {.train_header = true}),
            "[<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>]"
            "[<|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|>]");
}

TEST(EncodeChat, WholeIsTokenisedOnce) {
  const ModelText model = Load(kLlama3);
  const ChatTokens tokens = *model.EncodeChat(TwoTurns().dump(), {});
  const std::string text =
      *model.chat_template()->Render(TwoTurns().dump(), {.bos_token = model.bos_token()});
  EXPECT_EQ(tokens.ids, model.tokenizer().Encode(text, false)->ids);
  EXPECT_EQ(tokens.ids.front(), 128000) << "one BOS, the template's";
  EXPECT_NE(tokens.ids[1], 128000);
}

TEST(EncodeChat, Weights) {
  const ModelText model = Load(kLlama3);
  EXPECT_EQ(Trained(model, TwoTurns(), {.weights = {1, 1, 0, 1, 1}}), "[No.<|eot_id|>]");
  EXPECT_EQ(Trained(model, TwoTurns(), {.weights = {0, 0, 1, 0, 0}}), "[Yes.<|eot_id|>]");
  EXPECT_EQ(Trained(model, TwoTurns(), {.weights = {0, 0, 0, 0, 0}}), "");
  EXPECT_EQ(Trained(model, TwoTurns(), {.weights = {1}}), "1 weights for 5 messages");
}

TEST(EncodeChat, TrainAllLeavesOutTurnsOfNoWeight) {
  const ModelText model = Load(kLlama3);
  const std::string text =
      *model.chat_template()->Render(TwoTurns().dump(), {.bos_token = model.bos_token()});
  EXPECT_EQ(Trained(model, TwoTurns(), {.train_all = true}), std::string("[") + text + "]");
  const size_t end = text.find("No.<|eot_id|>");
  EXPECT_EQ(Trained(model, TwoTurns(), {.train_all = true, .weights = {1, 1, 1, 1, 0}}),
            std::string("[") + text.substr(0, end) + "]");
}

TEST(EncodeChat, TemplateThatDropsEarlierReasoning) {
  const ModelText model = Load(kReasoning);
  const Json messages = {
      Message("user", "One?"),   Message("assistant", "<think>\nhm\n</think>\nYes."),
      Message("user", "Two?"),   Message("assistant", "Yes."),
      Message("user", "Three?"), Message("assistant", "<think>\noh\n</think>\nNo.")};
  EXPECT_EQ(Trained(model, messages),
            "[Yes.<|eot_id|>][Yes.<|eot_id|>][<think>\noh\n</think>\nNo.<|eot_id|>]");
  EXPECT_EQ(Trained(model, messages, {.train_header = true, .weights = {1, 1, 1, 0, 1, 0}}),
            "[<|start_header_id|>assistant<|end_header_id|>\nYes.<|eot_id|>]");
  EXPECT_EQ(Trained(model, messages, {.weights = {1, 0, 1, 1, 1, 1}}),
            "[Yes.<|eot_id|>][<think>\noh\n</think>\nNo.<|eot_id|>]");
}

TEST(EncodeChat, ToolCalls) {
  const ModelText model = Load(kReasoning);
  Json call = Message("assistant", "");
  call["tool_calls"] = {
      {{"type", "function"},
       {"function", {{"name", "now"}, {"arguments", {{"zone", "é"}, {"at", 1}}}}}}};
  const Json messages = {Message("user", "Time?"), call, Message("tool", "12:00"),
                         Message("assistant", "Noon.")};
  EXPECT_EQ(Trained(model, messages),
            R"([{"name": "now", "arguments": {"zone": "é", "at": 1}}<|eot_id|>])"
            "[<think>\n\n</think>\nNoon.<|eot_id|>]");
}

TEST(EncodeChat, TemplateWithoutGenerationPrompt) {
  const Json messages = {Message("user", "One?"), Message("assistant", "Yes."),
                         Message("user", "Two?"), Message("assistant", "No.")};
  const std::string expected = "[ Yes.<|end_of_text|>][ No.<|end_of_text|>]";
  EXPECT_EQ(Trained(Load(kInstruct), messages), expected);
  // Now the prefix before the second turn is not one of the whole.
  EXPECT_EQ(Trained(Load(kInstruct), messages, {.tools_json = R"([{"name": "now"}])"}), expected);
  EXPECT_EQ(Trained(Load(kHeaders), messages), "[ Yes.\n][ No.\n]");
}

TEST(EncodeChat, AssistantFirst) {
  // Templates that look at messages[0] cannot render the empty prefix.
  const std::string source =
      std::string("{% if messages[0].role == 'system' %}S{% endif %}") + kLlama3;
  const Json messages = {Message("assistant", "qq"), Message("user", "Hi")};
  EXPECT_EQ(Trained(Load(source), messages), "[qq<|eot_id|>]");
}

TEST(EncodeChat, SameTextTwice) {
  const Json messages = {Message("user", "yes"), Message("assistant", "yes"),
                         Message("user", "yes"), Message("assistant", "yes")};
  EXPECT_EQ(Trained(Load(kReasoning), messages),
            "[yes<|eot_id|>][<think>\n\n</think>\nyes<|eot_id|>]");
}

TEST(EncodeChat, EmptyAnswersAndNoAnswers) {
  const ModelText model = Load(kLlama3);
  EXPECT_EQ(Trained(model, Json::array({Message("user", "Hi"), Message("assistant", "")})),
            "[<|eot_id|>]");
  EXPECT_EQ(Trained(model, Json::array({Message("user", "Hi")})), "");
  EXPECT_EQ(Trained(model, Json::array()), "");
}

TEST(EncodeChat, GenerationTagsChangeNothing) {
  std::string source = kLlama3;
  const std::string content = "message.content | trim + '<|eot_id|>'";
  source.replace(source.find("message.content"), content.size(),
                 "'' }}{% generation %}{{ " + content);
  source.replace(source.find("{% endfor %}"), 0, "{% endgeneration %}");
  EXPECT_EQ(Trained(Load(source), TwoTurns()), "[Yes.<|eot_id|>][No.<|eot_id|>]");
}

TEST(EncodeChat, SaysAtWhichMessage) {
  // The order is turned round, so no prefix is one.
  EXPECT_THAT(
      Trained(Load("{% for m in messages[::-1] %}{{ loop.length ~ m.content }};{% endfor %}"),
              TwoTurns()),
      HasSubstr("messages[2]: cannot tell which part of the text is this turn"));
  EXPECT_THAT(Trained(Load("{{ messages | length }}"), TwoTurns()),
              HasSubstr("messages[2]: cannot tell which part of the text is this turn"));
}

TEST(EncodeChat, RefusesBadMessages) {
  const ModelText model = Load(kLlama3);
  const auto message = [&](const std::string& messages) {
    const absl::Status status = model.EncodeChat(messages, {}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << messages << ": " << status;
    return std::string(status.message());
  };
  EXPECT_EQ(message("{}"), "messages: not a JSON array");
  EXPECT_EQ(message("[5]"), "messages[0]: not a JSON object");
  EXPECT_EQ(message(R"([{"role": "user", "content": "x"}, {"content": "x"}])"),
            "messages[1].role: not a string");
  EXPECT_EQ(message(R"([{"role": 5}])"), "messages[0].role: not a string");
  EXPECT_THAT(message("[{]"), HasSubstr("messages: "));
  EXPECT_THAT(message("[\"\xff\"]"), HasSubstr("messages: "));
  message("");
  message(std::string(100'000, '['));
  message("[{\"role\": \"user\", \"content\": " + std::string(100'000, '[') +
          std::string(100'000, ']') + "}]");
}

// The published templates, where they are at hand.
TEST(EncodeChat, Llama3AndQwen2) {
  for (const std::string& name : PresentTokenizers({"llama3", "qwen2"})) {
    const auto folder =
        ModelDir("published", ReadText(SharedData() / "tokenizers" / name / "chat_template.jinja"));
    std::filesystem::copy(SharedData() / "tokenizers" / name / "tokenizer.json",
                          folder / "tokenizer.json",
                          std::filesystem::copy_options::overwrite_existing);
    const absl::StatusOr<ModelText> model = ModelText::Load(folder);
    ASSERT_TRUE(model.ok()) << model.status();
    const std::string end = name == "llama3" ? "<|eot_id|>" : "<|im_end|>";
    const std::string yes = name == "llama3" ? "Yes." : "  Yes. ";
    EXPECT_EQ(Trained(*model, TwoTurns()), std::string("[") + yes + end + "][No." + end + "]");
  }
}

}  // namespace
}  // namespace lemo::text
