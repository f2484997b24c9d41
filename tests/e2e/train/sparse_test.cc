// Runs that leave rows out, from spec to adapter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

using nlohmann::json;

// Four steps on documents of several blocks.
json SparseSpec(const json& tokens) {
  json spec = Workspace::Spec();
  spec["tokens"] = {{"policy", "random"}, {"keep", {0.5}}, {"block", 4}};
  spec["tokens"].update(tokens);
  return spec;
}

std::string Adapter(const Workspace& workspace, const std::string& out) {
  return ReadAll(workspace.path() / out / "adapter" / "adapter_model.safetensors");
}

TEST(Sparse, EveryScopeTrainsTellsAndPublishes) {
  for (const json& tokens : std::vector<json>{{{"scope", "stack"}},
                                              {{"scope", "nested"}},
                                              {{"scope", "layer"}, {"mlp", "own"}},
                                              {{"scope", "layer"}, {"policy", "norm"}},
                                              {{"scope", "group"}, {"loss_rows", "through"}},
                                              {{"scope", "stack"}, {"policy", "recency"}}}) {
    SCOPED_TRACE(tokens.dump());
    const Workspace workspace;
    json spec = SparseSpec(tokens);
    spec["eval"]["sparse"] = true;
    spec["memory"]["policy"] = "all";
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    const auto steps = run.Of("step");
    ASSERT_EQ(steps.size(), 4u);
    for (const json& step : steps) {
      const json& sparsity = step.at("sparsity");
      const auto attention = sparsity.at("attention_kept").get<std::vector<double>>();
      const auto mlp = sparsity.at("mlp_kept").get<std::vector<double>>();
      ASSERT_EQ(attention.size(), 5u);
      ASSERT_EQ(mlp.size(), 5u);
      EXPECT_LT(attention[2], 0.8);
      EXPECT_GT(attention[2], 0.3);
      EXPECT_LT(mlp[2], 0.8);
      EXPECT_LE(sparsity.at("loss_kept").get<double>(), 1.0);
      EXPECT_GT(sparsity.at("loss_kept").get<double>(), 0.0);
      EXPECT_EQ(sparsity.at("bad_blocks"), 0);
    }
    // Every step of so short a run; one mask a layer and micro-batch.
    ASSERT_GE(run.Of("selection").size(), 4u);
    for (const json& selection : run.Of("selection")) {
      EXPECT_EQ(selection.at("attention").size(), 5u);
      EXPECT_EQ(selection.at("mlp").size(), 5u);
      EXPECT_EQ(selection.at("document_starts").back(), selection.at("block_starts").back());
    }
    for (const json& eval : run.Of("eval")) {
      EXPECT_GT(eval.at("sparse_loss").get<double>(), 0.0);
      EXPECT_NE(eval.at("sparse_loss"), eval.at("loss"));
    }
    const json result = run.Last("result");
    EXPECT_LT(result.at("eval_loss").get<double>(), result.at("eval_loss_before").get<double>());
    EXPECT_LE(result.at("publish_max_logit_difference").get<double>(), 1e-4);
    EXPECT_FALSE(Adapter(workspace, "out").empty());
    EXPECT_TRUE(json::accept(ReadAll(workspace.path() / "out/report.json")));
  }
}

TEST(Sparse, KeepingAllIsTheDenseRunToTheByte) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  spec["output"]["dir"] = "dense";
  const Outcome dense = workspace.Run(spec);
  ASSERT_EQ(dense.exit_code, 0) << dense.out << dense.err;
  for (const std::string scope : {"layer", "nested", "stack"}) {
    spec =
        SparseSpec({{"scope", scope}, {"keep", {1.0}}, {"warmup_steps", 1}, {"anneal_steps", 2}});
    spec["output"]["dir"] = scope;
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    EXPECT_EQ(run.Losses(), dense.Losses());
    EXPECT_EQ(Adapter(workspace, scope), Adapter(workspace, "dense"));
    EXPECT_TRUE(run.Of("selection").empty());
  }
}

TEST(Sparse, EveryStoragePolicyGivesTheSameBytes) {
  const Workspace workspace;
  for (const json& tokens :
       std::vector<json>{{{"scope", "layer"}, {"mlp", "own"}}, {{"scope", "stack"}}}) {
    json spec = SparseSpec(tokens);
    spec["tuner"]["lora"]["dropout"] = 0.05;
    std::string adapter;
    for (const std::string policy : {"all", "mlp+offload", "attn_out", "input"}) {
      SCOPED_TRACE(tokens.dump() + policy);
      spec["memory"] = {{"policy", policy}};
      spec["output"]["dir"] = tokens.at("scope").get<std::string>() + policy;
      const Outcome run = workspace.Run(spec);
      ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
      if (adapter.empty()) adapter = Adapter(workspace, spec["output"]["dir"]);
      EXPECT_EQ(Adapter(workspace, spec["output"]["dir"]), adapter);
    }
  }
}

// A run that stopped half way and went on makes the bytes of one that did not.
TEST(Sparse, AResumedRunIsTheUnbrokenOne) {
  const Workspace workspace;
  for (const std::string scope : {"layer", "nested", "stack"}) {
    SCOPED_TRACE(scope);
    json spec = SparseSpec({{"scope", scope}, {"warmup_steps", 1}, {"anneal_steps", 4}});
    spec["train"]["steps"] = 6;
    spec["checkpoint"] = {{"every_steps", 3}, {"keep_last", 5}};
    spec["output"]["dir"] = scope;
    const Outcome whole = workspace.Run(spec);
    ASSERT_EQ(whole.exit_code, 0) << whole.out << whole.err;
    const std::string adapter = Adapter(workspace, scope);
    const auto checkpoints = whole.Of("checkpoint");
    ASSERT_EQ(checkpoints.front().at("step"), 3);
    spec["output"]["dir"] = scope + "-resumed";
    const Outcome rest =
        workspace.Run(spec, {"--resume", checkpoints.front().at("path").get<std::string>()});
    ASSERT_EQ(rest.exit_code, 0) << rest.out << rest.err;
    const auto losses = rest.Losses();
    ASSERT_EQ(losses.size(), 3u);
    for (const auto& [step, loss] : losses) EXPECT_EQ(loss, whole.Losses().at(step)) << step;
    EXPECT_EQ(Adapter(workspace, scope + "-resumed"), adapter);
  }
}

TEST(Sparse, FaultsNameTheField) {
  const Workspace workspace;
  for (const auto& [tokens, said] : std::vector<std::pair<json, std::string>>{
           {{{"scope", "stack"}, {"mlp", "own"}}, "tokens.mlp"},
           {{{"scope", "layer"}, {"keep", {0.5, 0.5}}}, "tokens.keep: give one number"},
           {{{"keep", {0}}}, "tokens.keep[0]"}}) {
    const Outcome run = workspace.Run(SparseSpec(tokens));
    EXPECT_EQ(run.exit_code, 2) << run.out;
    EXPECT_THAT(run.out + run.err, testing::HasSubstr(said));
  }
}

TEST(Sparse, AShadowRaisesWhatIsKeptWhenQualityFalls) {
  const Workspace workspace;
  // Text of the model's own kind: of words at random, fewer are easier to predict.
  workspace.Write("eval.jsonl",
                  json{{"text",
                        "Once upon a time, there was a little girl named Lily. She loved to play "
                        "outside in the park with her dog. One day, she saw a big red ball."}}
                          .dump() +
                      "\n");
  json spec = SparseSpec({{"keep", {0.3}}});
  spec["train"]["steps"] = 8;
  spec["train"]["learning_rate"] = 1e-5;
  spec["eval"]["shadow_every_steps"] = 2;
  spec["eval"]["max_quality_gap"] = 0;
  const Outcome run = workspace.Run(spec);
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  std::vector<json> shadows = run.Of("shadow");
  ASSERT_FALSE(shadows.empty());
  size_t raised = 0;
  double keep = 0;
  for (const json& shadow : shadows) {
    const double gap = shadow.at("gap");
    EXPECT_NEAR(gap, shadow.at("sparse_loss").get<double>() - shadow.at("dense_loss").get<double>(),
                1e-12);
    EXPECT_EQ(shadow.at("verdict"), gap > 0 ? "raised" : "within");
    raised += gap > 0;
    EXPECT_GE(shadow.at("keep_least").get<double>(), keep);
    keep = shadow.at("keep_least");
  }
  EXPECT_EQ(run.Of("amendment").size(), raised);
  ASSERT_GT(raised, 0u);
  // More rows are computed from the step after on.
  const auto kept = [&run](int step) {
    for (const json& event : run.Of("step")) {
      if (event.at("step") != step) continue;
      return event.contains("sparsity") ? event.at("sparsity").at("attention_kept")[0].get<double>()
                                        : 1.0;
    }
    return 0.0;
  };
  EXPECT_GT(kept(8), kept(1));
  EXPECT_TRUE(json::parse(ReadAll(workspace.path() / "out/report.json")).contains("shadows"));

  // A budget that has no room for more rows keeps them away, and says so.
  spec["output"]["dir"] = "refused";
  spec["memory"] = {{"budget_bytes", 1}};
  const std::string message = workspace.Run(spec).Last("error").at("message");
  const size_t at = message.find("A budget of ");
  ASSERT_NE(at, std::string::npos) << message;
  spec["memory"]["budget_bytes"] = std::stoll(message.substr(at + 12)) + 4096;
  spec["output"]["dir"] = "tight";
  const Outcome tight = workspace.Run(spec);
  ASSERT_EQ(tight.exit_code, 0) << tight.out << tight.err;
  EXPECT_FALSE(tight.Of("shadow").empty());
  for (const json& step : tight.Of("step")) {
    EXPECT_LE(step.at("memory").at("peak_bytes").get<int64_t>(),
              step.at("memory").at("budget_bytes").get<int64_t>());
  }
}

}  // namespace
}  // namespace lemo::train
