// `--set` of `lemo job submit`.
#include "cli/spec_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

lemo::v1::JobSpec Assign(const std::vector<std::string>& assignments,
                         std::vector<std::string>* faults) {
  Violations violations;
  std::vector<std::string> notes;
  const lemo::v1::JobSpec spec = ParseJobSpec(
      {R"({"run": {"data": {"train": [{"path": "a"}]}, "train": {"batchSequences": 2}}})",
       "job.json"},
      assignments, &violations, &notes);
  for (const Violation& violation : violations.kept()) faults->push_back(violation.ToString());
  return spec;
}

TEST(ApplyAssignment, SetsFieldsElementsAndEntries) {
  std::vector<std::string> faults;
  const lemo::v1::JobSpec spec =
      Assign({"run.train.steps=10", "run.train.batch_sequences=3", "run.data.train[0].path=123",
              "run.data.train[1].path=\"b\"", "run.tuner.lora.targets=all-linear",
              "run.tuner.lora.rank_pattern.layers.0.q_proj=4",
              "run.tuner.lora.rank_pattern[\"a=b\"]=5", "labels.team=nlp", "display_name=42"},
             &faults);
  EXPECT_THAT(faults, IsEmpty());
  EXPECT_EQ(spec.run().train().steps(), 10);
  EXPECT_EQ(spec.run().train().batch_sequences(), 3) << "the file wrote it in lowerCamel";
  EXPECT_EQ(spec.run().data().train(0).path(), "123");
  EXPECT_EQ(spec.run().data().train(1).path(), "b");
  EXPECT_THAT(spec.run().tuner().lora().targets(), ElementsAre("all-linear"));
  EXPECT_EQ(spec.run().tuner().lora().rank_pattern().at("layers.0.q_proj"), 4);
  EXPECT_EQ(spec.run().tuner().lora().rank_pattern().at("a=b"), 5);
  EXPECT_EQ(spec.labels().at("team"), "nlp");
  EXPECT_EQ(spec.display_name(), "42");
}

TEST(ApplyAssignment, NullClears) {
  std::vector<std::string> faults;
  const lemo::v1::JobSpec spec =
      Assign({"run.train.batch_sequences=null", "run.data.train=null"}, &faults);
  EXPECT_THAT(faults, IsEmpty());
  EXPECT_FALSE(spec.run().train().has_batch_sequences());
  EXPECT_EQ(spec.run().data().train_size(), 0);
}

TEST(ApplyAssignment, NamesWhatIsWrongWithAPath) {
  std::vector<std::string> faults;
  Assign({"steps", "run.train.steps.x=1", "run.data.train.path=b", "run.data.train[7].path=b",
          "run.data.train[x]=b", "run.memory.layers=[1"},
         &faults);
  EXPECT_THAT(
      faults,
      ElementsAre("steps: --set: expected field=value, for example run.train.steps=100",
                  "run.train.steps: --set: has nothing called \".x\"",
                  "run.data.train: --set: has nothing called \".path\"; reach into lists with [0]",
                  "run.data.train: --set: index 7 is out of range; the list has 1 elements, [1] "
                  "appends one",
                  "run.data.train: --set: expected an index such as [0]",
                  testing::StartsWith("run.memory.layers: --set: not valid JSON")));
}

}  // namespace
}  // namespace lemo::cli
