#include "text/chat_template.h"

#include <iostream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::text {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

constexpr char kTwo[] =
    R"([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])";

absl::StatusOr<std::string> Render(const std::string& source, std::string_view messages = kTwo,
                                   const RenderOptions& options = {}) {
  const absl::StatusOr<ChatTemplate> compiled = ChatTemplate::Compile(source);
  if (!compiled.ok()) return compiled.status();
  return compiled->Render(messages, options);
}

TEST(ChatTemplate, PassesWhatTemplatesName) {
  EXPECT_EQ(
      *Render("{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}|{{ tools | tojson }}",
              kTwo,
              {.tools_json = R"([{"b": 1, "a": 2}])",
               .add_generation_prompt = true,
               .bos_token = "<s>",
               .eos_token = "</s>"}),
      R"(<s>|</s>|True|[{"b": 1, "a": 2}])");
  EXPECT_EQ(*Render("{{ tools is none }} {{ nothing }} {{ nothing is defined }}"), "True  False");
}

TEST(ChatTemplate, MessageLimit) {
  EXPECT_EQ(*Render("{{ messages | length }}", kTwo, {.message_limit = 1}), "1");
  EXPECT_EQ(*Render("{{ messages | length }}", kTwo, {.message_limit = 0}), "0");
  EXPECT_EQ(*Render("{{ messages | length }}"), "2");
}

TEST(ChatTemplate, KeepsTheOrderOfKeys) {
  EXPECT_EQ(
      *Render("{{ messages[0] | tojson }}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}",
              R"([{"z": 1, "role": "x", "a": {"y": 1, "b": 2}}])"),
      R"({"z": 1, "role": "x", "a": {"y": 1, "b": 2}}zrolea)");
}

TEST(ChatTemplate, TimeIsFixedOnDemand) {
  EXPECT_EQ(*Render("{{ strftime_now('%d %b %Y, %H:%M') }}", kTwo, {.now_s = 1'721'952'000}),
            "26 Jul 2024, 00:00");
  EXPECT_THAT(*Render("{{ strftime_now('%Y-%m-%d') }}"),
              MatchesRegex("20[0-9][0-9]-[0-9]+-[0-9]+"));
  EXPECT_TRUE(absl::IsInvalidArgument(Render("{{ strftime_now('%Q') }}").status()));
}

TEST(ChatTemplate, HashIsOfTheSource) {
  const ChatTemplate compiled = *ChatTemplate::Compile("abc");
  EXPECT_EQ(compiled.source(), "abc");
  EXPECT_EQ(compiled.hash(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ChatTemplate, SaysWhatTheTemplateRaised) {
  const absl::Status status = Render("\n{{ raise_exception('Roles must alternate!') }}").status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(), "chat template: Roles must alternate! (line 2)");
}

TEST(ChatTemplate, SyntaxErrorsNameTheLine) {
  for (const std::string& source :
       {std::string("a\n{% for x in %}"), std::string("a\n{{ 'open"),
        std::string("\n{% nonsense %}"), std::string("\n{{ x | nofilter }}"),
        std::string("\n{% generation %}x")}) {
    const absl::Status status = Render(source).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << source;
    EXPECT_THAT(status.message(), HasSubstr("(line 2)")) << source;
  }
}

TEST(ChatTemplate, RefusesBadInput) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  for (const std::string& messages : {std::string(), std::string("{}"), std::string("[1,"),
                                      std::string("nul"), std::string("[\"\xff\"]"), deep}) {
    const absl::Status status = Render("x", messages).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr("messages"));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Render("x", "[]", {.tools_json = "{}"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Render("x", "[]", {.bos_token = "\xff"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ChatTemplate::Compile("\xff").status()));
}

std::string Repeat(const std::string& text, int count) {
  std::string repeated;
  for (int i = 0; i < count; ++i) repeated += text;
  return repeated;
}

// Each of these ends in an error (or in a short text), within a second or so and without exhausting
// stack or memory.
TEST(ChatTemplate, HostileTemplates) {
  const std::string nest =
      "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% for j in range(100000) %}"
      "{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
  const std::vector<std::string> sources = {
      "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}",
      "{% for i in range(10000000000) %}x{% endfor %}",
      "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
      "{% macro f(x) %}{{ f(x) ~ f(x) }}{% endmacro %}{{ f(1) }}",
      "{{ 'x' * 100000000000 }}",
      "{% set x = 'x' * 1000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
      "{{ messages | tojson(indent='x' * 100000000000) }}",
      "{{ 10 ** 10 ** 10 }}",
      "{{ 1 // 0 }}",
      "{% include 'other' %}",
      "{% extends 'chat_template' %}",
      nest,
      nest.substr(0, nest.size() - std::string("{% endfor %}").size()) + "{{ ns.x }}{% endfor %}",
      std::string(100'000, '(') + "1",
      "{{ " + std::string(100'000, '(') + "1",
      "{{ " + std::string(100'000, '[') + "1",
      "{{ " + std::string(200'000, '-') + "1 }}",
      "{{ " + Repeat("not ", 60'000) + "1 }}",
      "{{ 1" + Repeat("+1", 120'000) + " }}",
      "{{ 1" + Repeat(".a", 120'000) + " }}",
      "{{ 1" + Repeat("|e", 120'000) + " }}",
      "{{ 1" + Repeat("if 1", 60'000) + " }}",
      Repeat("{% if 1 %}", 20'000),
      std::string(1'000'000, 'x') + "{{ messages",
  };
  for (const std::string& source : sources) {
    const absl::StatusOr<std::string> text = Render(source);
    const bool plain_text = text.ok() && *text == source;
    EXPECT_TRUE(plain_text || absl::IsInvalidArgument(text.status()) ||
                text.value_or("").size() < 10)
        << source.substr(0, 100);
  }
}

}  // namespace
}  // namespace lemo::text
