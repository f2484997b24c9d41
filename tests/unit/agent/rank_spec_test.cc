#include "worker/agent/rank_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

using testing::HasSubstr;

class RankSpec : public testing::Test {
 protected:
  RankSpec() {
    scratch_.Write("model/config.json", "{}");
    assignment_.set_model_path("/on/another/machine");
    assignment_.mutable_run()->mutable_model()->set_path("models/m");
    assignment_.mutable_run()->mutable_data()->add_train()->set_path("files/a");
    assignment_.mutable_run()->mutable_data()->mutable_train(0)->set_format("chat");
    assignment_.mutable_run()->mutable_data()->add_eval()->set_path("files/ab");
    assignment_.mutable_run()->mutable_output()->set_merge(true);
  }

  const Scratch scratch_;
  lemo::v1::Assignment assignment_;
  LocalPaths paths_{.files = {{"files/a", "/x/1"}, {"files/ab", "/x/11"}},
                    .model = (scratch_.path() / "model").string(),
                    .out = "/j/out",
                    .device = "cuda:3"};
};

TEST_F(RankSpec, PutsPathsInPlaceOfNames) {
  const auto spec = MakeRankSpec(assignment_, paths_);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->data().train(0).path(), "/x/1");
  EXPECT_EQ(spec->data().train(0).format(), "chat");
  EXPECT_EQ(spec->data().eval(0).path(), "/x/11");
  EXPECT_EQ(spec->model().path(), paths_.model);
  EXPECT_EQ(spec->output().dir(), "/j/out");
  EXPECT_TRUE(spec->output().merge());
  EXPECT_EQ(spec->device(), "cuda:3");
}

TEST_F(RankSpec, ARankHasTheMemoryOfTheContract) {
  EXPECT_FALSE(MakeRankSpec(assignment_, paths_)->memory().has_budget_bytes());
  assignment_.set_contract_bytes(1000);
  EXPECT_EQ(MakeRankSpec(assignment_, paths_)->memory().budget_bytes(), 1000);
  assignment_.mutable_run()->mutable_memory()->set_budget_bytes(900);
  EXPECT_EQ(MakeRankSpec(assignment_, paths_)->memory().budget_bytes(), 900);
  assignment_.mutable_run()->mutable_memory()->set_budget_bytes(1100);
  EXPECT_EQ(MakeRankSpec(assignment_, paths_)->memory().budget_bytes(), 1000);
}

TEST_F(RankSpec, FrozenWeightsAreThoseOfTheMachine) {
  EXPECT_FALSE(MakeRankSpec(assignment_, paths_)->model().has_bases_dir());
  paths_.bases = "/agent/bases";
  EXPECT_FALSE(MakeRankSpec(assignment_, paths_)->model().has_bases_dir()) << "no checksums";
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    lemo::v1::ModelFile& file = *assignment_.add_model_files();
    file.set_path(name);
    file.set_sha256(std::string("of ") + name);
  }
  const lemo::v1::ModelSpec model = MakeRankSpec(assignment_, paths_)->model();
  EXPECT_EQ(model.bases_dir(), "/agent/bases");
  EXPECT_EQ(model.weights_digest().size(), 64u);
  // What decides the weights decides the digest, and nothing else.
  assignment_.mutable_model_files(2)->set_sha256("another");
  EXPECT_EQ(MakeRankSpec(assignment_, paths_)->model().weights_digest(), model.weights_digest());
  assignment_.mutable_model_files(1)->set_sha256("another");
  EXPECT_NE(MakeRankSpec(assignment_, paths_)->model().weights_digest(), model.weights_digest());
  // Weights that train are the run's own.
  assignment_.mutable_run()->mutable_tuner()->mutable_full();
  EXPECT_FALSE(MakeRankSpec(assignment_, paths_)->model().has_bases_dir());
}

TEST_F(RankSpec, PredictorsAreThoseOfTheMachine) {
  paths_.predictors = "/agent/predictors";
  EXPECT_FALSE(MakeRankSpec(assignment_, paths_)->has_tokens());
  assignment_.mutable_run()->mutable_tokens()->set_policy("random");
  EXPECT_FALSE(MakeRankSpec(assignment_, paths_)->tokens().has_predictors_dir());
  assignment_.mutable_run()->mutable_tokens()->set_policy("predictor");
  EXPECT_EQ(MakeRankSpec(assignment_, paths_)->tokens().predictors_dir(), "/agent/predictors");
  EXPECT_EQ(PathNames(assignment_, paths_).Restore("in /agent/predictors/p"), "in predictors/p");
  // What was planned to begin with a new one does, whatever lies there.
  assignment_.mutable_run()->mutable_tokens()->mutable_online();
  EXPECT_TRUE(MakeRankSpec(assignment_, paths_)->tokens().has_predictors_dir());
  assignment_.set_contract_bytes(1 << 30);
  EXPECT_FALSE(MakeRankSpec(assignment_, paths_)->tokens().has_predictors_dir());
}

TEST_F(RankSpec, APredictorMayBeAnotherJobs) {
  lemo::v1::TokensSpec& tokens = *assignment_.mutable_run()->mutable_tokens();
  tokens.set_policy("predictor");
  tokens.set_predictor("jobs/p");
  paths_.predictor = "/j/predictor";
  EXPECT_EQ(MakeRankSpec(assignment_, paths_)->tokens().predictor(), "/j/predictor");
  EXPECT_EQ(PathNames(assignment_, paths_).Restore("/j/predictor/card.json"), "jobs/p/card.json");
}

TEST_F(RankSpec, NamesTheFieldThatHasNoPath) {
  assignment_.mutable_run()->mutable_data()->mutable_eval(0)->set_path("/etc/passwd");
  EXPECT_THAT(std::string(MakeRankSpec(assignment_, paths_).status().message()),
              HasSubstr("data.eval[0].path: /etc/passwd"));
  paths_.model = "/none";
  EXPECT_THAT(std::string(MakeRankSpec(assignment_, paths_).status().message()),
              HasSubstr("model.path: models/m"));
}

TEST_F(RankSpec, PutsNamesBackEverywhere) {
  const PathNames names(assignment_, paths_);
  EXPECT_EQ(names.Restore("/x/11:3 and /x/1:4"), "files/ab:3 and files/a:4");
  lemo::v1::RunEvent event;
  event.mutable_error()->set_message("in " + paths_.model + "/config.json");
  event.mutable_error()->add_violations()->set_file("/x/11");
  event.mutable_error()->add_violations()->set_file("/j/out/cache/b");
  names.Restore(&event);
  EXPECT_EQ(event.error().message(), "in models/m/config.json");
  EXPECT_EQ(event.error().violations(0).file(), "files/ab");
  EXPECT_EQ(event.error().violations(1).file(), "cache/b");
}

}  // namespace
}  // namespace lemo::agent
