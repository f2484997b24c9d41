#include "cli/spec_file.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Parsed {
  lemo::v1::JobSpec spec;
  std::vector<std::string> faults;
  std::vector<std::string> notes;
};

Parsed Parse(const std::string& text, const std::string& file,
             const std::vector<std::string>& assignments = {}) {
  Parsed parsed;
  Violations violations;
  parsed.spec = ParseJobSpec({text, file}, assignments, &violations, &parsed.notes);
  for (const Violation& violation : violations.kept()) {
    parsed.faults.push_back(violation.ToString());
  }
  return parsed;
}

constexpr char kYaml[] = R"(
display_name: almayer
labels: {team: nlp}
resources:
  ranks: 2
  device: cpu
run:
  model: {path: models/novelist}
  data:
    train:
      - path: a.txt
        format: book
  train: {steps: 40, learning_rate: 1e-3}
  tuner: {lora: {rank: 8, targets: [q_proj]}}
)";

TEST(ParseJobSpec, YamlAndJsonSayTheSame) {
  const Parsed yaml = Parse(kYaml, "job.yaml");
  EXPECT_THAT(yaml.faults, IsEmpty());
  const Parsed json = Parse(R"({"display_name": "almayer", "labels": {"team": "nlp"},
      "resources": {"ranks": 2, "device": "cpu"},
      "run": {"model": {"path": "models/novelist"},
              "data": {"train": [{"path": "a.txt", "format": "book"}]},
              "train": {"steps": 40, "learningRate": 1e-3},
              "tuner": {"lora": {"rank": 8, "targets": ["q_proj"]}}}})",
                            "job.json");
  EXPECT_THAT(json.faults, IsEmpty());
  EXPECT_EQ(yaml.spec.DebugString(), json.spec.DebugString());
  EXPECT_EQ(yaml.spec.run().train().learning_rate(), 1e-3);
  EXPECT_EQ(yaml.spec.labels().at("team"), "nlp");
}

TEST(ParseJobSpec, NamesAllFaultsAtOnceWithLines) {
  const Parsed parsed = Parse(R"(run:
  modle: {path: m}
  train:
    steps: forty
    seed: 1
    seed: 2
restart: 3
labels:
  team: 7
)",
                              "job.yaml", {"run.train.epochs=x", "run.trian.steps=1"});
  EXPECT_THAT(
      parsed.faults,
      ElementsAre("run.modle: job.yaml:2: unknown field; did you mean run.model?",
                  "run.train.steps: job.yaml:4: expected a whole number, got the string \"forty\"",
                  "run.train.seed: job.yaml:6: duplicate key; first given on line 5",
                  "restart: job.yaml:7: expected an object, got 3",
                  "labels[\"team\"]: job.yaml:9: expected a string, got 7",
                  "run.train.epochs: --set: expected a number, got the string \"x\"",
                  "run.trian: --set: unknown field; did you mean run.train?"));
}

TEST(ParseJobSpec, NamesTheLineOfBrokenText) {
  EXPECT_THAT(Parse("{\"run\": {},\n \"labels\": }", "job.json").faults,
              ElementsAre(HasSubstr("job.json:2: not valid JSON")));
  EXPECT_THAT(Parse("run: {}\nlabels: ]\n", "job.yaml").faults,
              ElementsAre(HasSubstr("job.yaml:2: not valid YAML")));
  EXPECT_THAT(Parse("", "job.yaml").faults,
              ElementsAre("job.yaml:1: expected an object, got null"));
}

TEST(ParseJobSpec, TakesARunSpecOfLemoTrainAsRun) {
  const Parsed parsed = Parse(R"({"model": {"path": "m"}, "train": {"steps": 4},
      "data": {"train": [{"path": "a"}], "cache_dir": "c"},
      "device": "cuda:1", "output": {"dir": "out", "merge": true}, "labels": {"a": "b"}})",
                              "run.json", {"train.steps=5"});
  EXPECT_THAT(parsed.faults, IsEmpty());
  EXPECT_EQ(parsed.spec.run().model().path(), "m");
  EXPECT_EQ(parsed.spec.run().train().steps(), 5);
  EXPECT_EQ(parsed.spec.labels().at("a"), "b");
  // The service has its own places and picks the device.
  EXPECT_EQ(parsed.spec.run().output().dir(), "");
  EXPECT_TRUE(parsed.spec.run().output().merge());
  EXPECT_FALSE(parsed.spec.run().data().has_cache_dir());
  EXPECT_FALSE(parsed.spec.run().has_device());
  EXPECT_EQ(parsed.spec.resources().device(), "cuda");
  EXPECT_THAT(parsed.notes, ElementsAre(HasSubstr("output.dir out is not used"),
                                        HasSubstr("data.cache_dir is not used"),
                                        "device became resources.device: cuda"));
}

TEST(ParseJobSpec, LeavesAJobSpecToTheServiceToJudge) {
  const Parsed parsed = Parse("run: {output: {dir: out}}", "job.yaml");
  EXPECT_EQ(parsed.spec.run().output().dir(), "out");
  EXPECT_THAT(parsed.notes, IsEmpty());
}

}  // namespace
}  // namespace lemo::cli
