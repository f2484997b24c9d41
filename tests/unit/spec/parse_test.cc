#include <cmath>

#include "common/located_json.h"
#include "common/message_json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/spec/faults.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

lemo::v1::RunSpec Parse(const std::string& json, Violations* violations) {
  return ParseRunSpec(json, "run.json", violations);
}

std::vector<std::string> FaultsOf(const std::string& json) {
  Violations violations;
  Parse(json, &violations);
  return Texts(violations);
}

TEST(ParseRunSpec, ReadsEveryKindOfField) {
  Violations violations;
  const lemo::v1::RunSpec spec = Parse(R"({
      "model": {"path": "m", "random_init": {"seed": 4294967295}},
      "data": {"train": [{"path": "a"}, {"path": "b", "format": "chat"}], "packing": false},
      "tuner": {"lora": {"rank": 4, "alpha": 1.5, "targets": ["q_proj"],
                         "rank_pattern": {"layers.0.q_proj": 16}, "alpha_pattern": {"x": 2}}},
      "memory": {"layers": [{"first": 0, "last": 3, "policy": "input"}]}, "device": null})",
                                       &violations);
  EXPECT_THAT(Texts(violations), IsEmpty());
  EXPECT_EQ(spec.model().random_init().seed(), 4294967295u);
  EXPECT_EQ(spec.data().train(1).format(), "chat");
  EXPECT_TRUE(spec.data().has_packing());
  EXPECT_FALSE(spec.data().packing());
  EXPECT_EQ(spec.tuner().lora().alpha(), 1.5);
  EXPECT_EQ(spec.tuner().lora().rank_pattern().at("layers.0.q_proj"), 16);
  EXPECT_EQ(spec.tuner().lora().alpha_pattern().at("x"), 2);
  EXPECT_EQ(spec.memory().layers(0).last(), 3);
  EXPECT_FALSE(spec.has_device());
}

TEST(ParseRunSpec, TakesWhatProto3JsonTakes) {
  Violations violations;
  const lemo::v1::RunSpec spec = Parse(
      R"({"train": {"batchSequences": "8", "steps": 1e2, "learningRate": "NaN"}})", &violations);
  EXPECT_THAT(Texts(violations), IsEmpty());
  EXPECT_EQ(spec.train().batch_sequences(), 8);
  EXPECT_EQ(spec.train().steps(), 100);
  EXPECT_TRUE(std::isnan(spec.train().learning_rate()));
}

TEST(ParseRunSpec, NamesEveryFaultAtOnceWithPathAndLine) {
  EXPECT_THAT(
      FaultsOf(R"({
  "modle": {"path": "m"},
  "train": {
    "steps": "forty",
    "batch_sequences": 1.5,
    "warmup_steps": 3000000000,
    "seed": -1,
    "learning_rate": [1],
    "schedule": 3
  },
  "data": {"train": [{"path": "a"},
                     {"pat": "b"}], "packing": 1, "eval": {}},
  "tuner": {"lora": {"rank_pattern": {"q": 1, "q": 2}, "targets": ["a", 7]}},
  "output": "out"
})"),
      ElementsAre(
          "modle: run.json:2: unknown field; did you mean model?",
          "train.steps: run.json:4: expected a whole number, got the string \"forty\"",
          "train.batch_sequences: run.json:5: expected a whole number, got 1.5",
          "train.warmup_steps: run.json:6: out of range: 3000000000 is not from -2147483648 to "
          "2147483647",
          "train.seed: run.json:7: out of range: -1 is not from 0 to 4294967295",
          "train.learning_rate: run.json:8: expected a number, got a list",
          "train.schedule: run.json:9: expected a string, got 3",
          "data.train[1].pat: run.json:12: unknown field; did you mean data.train[1].path?",
          "data.packing: run.json:12: expected true or false, got 1",
          "data.eval: run.json:12: expected a list, got an object",
          "tuner.lora.rank_pattern[\"q\"]: run.json:13: duplicate key",
          "tuner.lora.targets[1]: run.json:13: expected a string, got 7",
          "output: run.json:14: expected an object, got the string \"out\""));
}

TEST(ParseRunSpec, KeepsWhatCouldBeRead) {
  Violations violations;
  const auto spec = Parse(R"({"train": {"steps": true, "seed": 7}})", &violations);
  EXPECT_EQ(violations.total(), 1);
  EXPECT_FALSE(spec.train().has_steps());
  EXPECT_EQ(spec.train().seed(), 7u);
}

TEST(ParseRunSpec, DuplicateKeysUnderEitherName) {
  EXPECT_THAT(FaultsOf("{\"train\": {\"warmup_steps\": 1,\n\"warmupSteps\": 2}}"),
              ElementsAre("train.warmup_steps: run.json:2: duplicate key; first given on line 1"));
}

TEST(ParseRunSpec, MembersOfAOneofExcludeEachOther) {
  EXPECT_THAT(FaultsOf(R"({"tuner": {"lora": {}, "full": {}}})"),
              ElementsAre("tuner.full: run.json:1: full and lora exclude each other; give one of "
                          "them"));
  EXPECT_THAT(FaultsOf(R"({"tuner": {"lora": null, "full": {}}})"), IsEmpty());
}

TEST(ParseRunSpec, PointsToAFieldThatStandsElsewhere) {
  EXPECT_THAT(FaultsOf(R"({"learning_rate": 1})"),
              ElementsAre("learning_rate: run.json:1: unknown field; did you mean "
                          "train.learning_rate or tokens.online.learning_rate?"));
  EXPECT_THAT(FaultsOf(R"({"memory": {"zzzzzzzz": 1}})"),
              ElementsAre(HasSubstr("unknown field; known here: policy, layers")));
}

TEST(ParseRunSpec, TextThatIsNotJson) {
  EXPECT_THAT(FaultsOf("{\n \"train\": {\n  \"steps\": 4,,\n }\n}"),
              ElementsAre(AllOf(HasSubstr("run.json:3: not valid JSON: "), HasSubstr("','"))));
  EXPECT_THAT(FaultsOf(""), ElementsAre(HasSubstr("run.json:1: not valid JSON")));
  EXPECT_THAT(FaultsOf("{} {}"), ElementsAre(HasSubstr("not valid JSON")));
  EXPECT_THAT(FaultsOf("{\"device\": \"\xff\"}"), ElementsAre(HasSubstr("not valid JSON")));
  EXPECT_THAT(FaultsOf(R"({"train": {"learning_rate": 1e999}})"), ElementsAre(HasSubstr("1e999")));
  EXPECT_THAT(FaultsOf("[]"), ElementsAre("run.json:1: expected an object, got a list"));
  EXPECT_THAT(FaultsOf(std::string(100000, '[')), ElementsAre(HasSubstr("nested deeper than 64")));
}

TEST(ParseRunSpec, RefusesNulInStrings) {
  EXPECT_THAT(FaultsOf(R"({"model": {"path": "a\u0000b"}})"),
              ElementsAre("model.path: run.json:1: contains a NUL character"));
}

TEST(ParseRunSpec, ShortensWhatItQuotes) {
  const std::string name(1000, 'x');
  for (const std::string& fault : FaultsOf("{\"" + name +
                                           "\": 1, \"device\": [], \"train\": "
                                           "{\"steps\": \"" +
                                           name + "\"}}")) {
    EXPECT_LT(fault.size(), 300u) << fault;
  }
}

TEST(LocatedJson, LinesOfValues) {
  JsonFault fault;
  const auto root = ParseLocatedJson("\n{\"a\": 1\n,\n\"b\":\n[2,\n3\n],\"c\":\n\"x\\n\"}", &fault);
  ASSERT_TRUE(root);
  EXPECT_EQ(root->line, 2);
  EXPECT_EQ(root->children[0].line, 2);
  EXPECT_EQ(root->children[1].line, 5);
  EXPECT_EQ(root->children[1].children[0].line, 5);
  EXPECT_EQ(root->children[1].children[1].line, 6);
  EXPECT_EQ(root->children[2].line, 8);
}

TEST(RunSpecToJson, ReadsBackTheSame) {
  Violations violations;
  lemo::v1::RunSpec spec;
  spec.mutable_train()->set_learning_rate(0.1 + 0.2);
  spec.mutable_train()->set_epochs(std::nan(""));
  spec.mutable_train()->set_epsilon(-INFINITY);
  spec.mutable_train()->set_beta2(5e-324);
  spec.mutable_tuner()->mutable_full();
  (*spec.mutable_tuner()->mutable_lora()->mutable_rank_pattern())["b"] = 2;
  (*spec.mutable_tuner()->mutable_lora()->mutable_rank_pattern())["a.\"\n"] = 1;
  spec.mutable_memory()->add_layers()->set_last(2);
  const std::string json = RunSpecToJson(spec);
  const lemo::v1::RunSpec again = Parse(json, &violations);
  EXPECT_THAT(Texts(violations), IsEmpty());
  EXPECT_EQ(RunSpecToJson(again), json);
  EXPECT_EQ(again.train().learning_rate(), 0.1 + 0.2);
  EXPECT_EQ(again.train().beta2(), 5e-324);
  EXPECT_TRUE(std::isnan(again.train().epochs()));
  EXPECT_THAT(json, HasSubstr("\"first\": 0"));
}

TEST(RunSpecToJson, SurvivesTextThatIsNotUtf8) {
  lemo::v1::RunSpec spec;
  spec.set_device("\xff");
  EXPECT_THAT(RunSpecToJson(spec), HasSubstr("device"));
}

}  // namespace
}  // namespace lemo::train
