#include "cli/output.h"

#include <functional>
#include <sstream>

#include "cli/app.h"
#include "cli/job_text.h"
#include "cli/local_inputs.h"
#include "cli/uuid.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lemo/v1/job.pb.h"
#include "tests/support/golden.h"

namespace lemo::cli {
namespace {

lemo::v1::Job SampleJob() {
  lemo::v1::Job job;
  job.set_name("jobs/k3v9");
  job.mutable_spec()->set_display_name("almayer");
  job.mutable_spec()->mutable_run()->mutable_model()->set_path("models/novelist-3m");
  job.mutable_spec()->mutable_run()->mutable_data()->add_train()->set_path("files/a1");
  job.mutable_spec()->mutable_run()->mutable_data()->add_eval()->set_path("files/b2");
  job.mutable_spec()->mutable_resources()->set_memory_bytes(2LL << 30);
  job.mutable_spec()->mutable_limits()->set_host_memory_bytes(2LL << 30);
  job.set_state(lemo::v1::Job::SUCCEEDED);
  job.mutable_create_time()->set_seconds(1767225600);
  job.mutable_start_time()->set_seconds(1767225601);
  job.mutable_end_time()->set_seconds(1767225661);
  job.set_attempt(1);
  job.set_worker("workers/w1");
  lemo::v1::Progress& progress = *job.mutable_progress();
  progress.set_step(40);
  progress.set_steps(40);
  progress.set_loss(2.90625);
  progress.set_tokens_per_second(16384);
  progress.set_peak_bytes(432013312);
  progress.set_checkpoint_step(40);
  progress.mutable_checkpoint_time()->set_seconds(1767225660);
  lemo::v1::ResultEvent& result = *job.mutable_result();
  result.set_train_loss(2.90625);
  result.set_eval_loss_before(3.25);
  result.set_eval_loss(2.890625);
  result.set_perplexity_before(25.79034);
  result.set_perplexity(18.00456);
  result.set_steps(40);
  result.set_tokens(327680);
  result.set_labelled_tokens(327520);
  result.set_tokens_per_second(16384);
  result.set_seconds(32.5);
  result.mutable_peak_bytes()->set_total(432013312);
  lemo::v1::Artifact& artifact = *job.add_artifacts();
  artifact.set_path("adapter/adapter_model.safetensors");
  artifact.set_bytes(81920);
  artifact.set_sha256(std::string(64, 'a'));
  return job;
}

TEST(Table, AlignsAndCleansCells) {
  Table table({"name", "state", "reason"});
  table.Add({"jobs/a", "RUNNING", ""});
  table.Add({"jobs/b\xc3\xa9", "QUEUED", "two\nlines\x1b[2J"});
  EXPECT_EQ(table.ToString(),
            "NAME     STATE    REASON\n"
            "jobs/a   RUNNING  -\n"
            "jobs/b\xc3\xa9  QUEUED   two lines?[2J\n");
}

TEST(Output, JobAsTable) {
  lemo::testing::ExpectGolden("tests/unit/cli/job.txt", JobText(SampleJob()));
}

TEST(Output, JobAsJson) {
  std::ostringstream out;
  PrintJson(ToJson(SampleJob()), OutputFormat::kJson, out);
  lemo::testing::ExpectGolden("tests/unit/cli/job.json", out.str());
}

TEST(Output, JobAsYaml) {
  std::ostringstream out;
  PrintJson(ToJson(SampleJob()), OutputFormat::kYaml, out);
  lemo::testing::ExpectGolden("tests/unit/cli/job.yaml", out.str());
}

TEST(Output, AJobOfSeveralRanksShowsItsGang) {
  lemo::v1::Job job;
  job.mutable_spec()->mutable_resources()->set_ranks(4);
  job.mutable_spec()->mutable_resources()->set_min_ranks(2);
  lemo::v1::GangNode& lead = *job.add_nodes();
  lead.set_worker("workers/1");
  lead.set_host("alpha");
  for (int device = 0; device < 3; ++device) lead.add_devices(device);
  EXPECT_THAT(JobText(job), ::testing::HasSubstr("3 ranks on 1 worker: 0-2 on alpha (workers/1)"));
  lemo::v1::GangNode& other = *job.add_nodes();
  other.set_worker("workers/2");
  other.set_host("beta");
  other.add_devices(1);
  EXPECT_THAT(JobText(job),
              ::testing::HasSubstr("4 ranks on 2 workers: 0-2 on alpha (workers/1, leads), "
                                   "3 on beta (workers/2)\n"));
  EXPECT_THAT(JobText(job), ::testing::HasSubstr("4 ranks (2 at least) on any device"));
}

TEST(Output, FailedJobSaysWhyAndWhatToDo) {
  lemo::v1::Job job;
  job.set_name("jobs/a");
  job.set_state(lemo::v1::Job::FAILED);
  lemo::v1::Failure& failure = *job.mutable_failure();
  failure.set_kind(lemo::v1::Failure::USER_ERROR);
  failure.set_message("1 fault");
  lemo::v1::Violation& violation = *failure.add_violations();
  violation.set_field("data.train[0]");
  violation.set_file("a.jsonl");
  violation.set_line(17);
  violation.set_json_path("messages[2].role");
  violation.set_reason("unknown role");
  failure.set_rank(1);
  failure.set_log_tail("first\nsecond\n");
  failure.set_advice("mend the row");
  EXPECT_THAT(JobText(job), ::testing::EndsWith("failed (USER_ERROR)\n"
                                                "  1 fault\n"
                                                "  data.train[0]: a.jsonl:17: messages[2].role: "
                                                "unknown role\n"
                                                "  Rank 1 wrote last:\n"
                                                "    first\n"
                                                "    second\n"
                                                "  What to do: mend the row\n"));
}

// New settings are fields of the spec; a new flag is a decision.
TEST(App, CommandsAndFlagsAreFrozen) {
  std::ostringstream unused;
  Context context(unused, unused);
  const std::unique_ptr<CLI::App> app = MakeApp(context);
  std::string list;
  const std::function<void(const CLI::App&, const std::string&)> walk =
      [&](const CLI::App& command, const std::string& path) {
        list += path;
        for (const CLI::Option* option : command.get_options()) {
          list += " " + (option->get_positional() ? option->get_name(true)
                                                  : option->get_name(false, true));
        }
        list += "\n";
        for (const CLI::App* child : command.get_subcommands({})) {
          walk(*child, path + " " + child->get_name());
        }
      };
  walk(*app, "lemo");
  lemo::testing::ExpectGolden("tests/unit/cli/commands.txt", list);
}

TEST(App, BadCommandLinesAreTheUsersFault) {
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {}, {"jobs"}, {"job", "get"}, {"job", "list", "-o", "xml"}, {"completion", "tcsh"}}) {
    std::ostringstream out, err;
    EXPECT_EQ(cli::Run(args, out, err), 2);
    EXPECT_NE(err.str(), "");
    EXPECT_EQ(out.str(), "");
  }
  std::ostringstream out, err;
  EXPECT_EQ(cli::Run({"version", "-o", "json"}, out, err), 0) << err.str();
  EXPECT_THAT(out.str(), ::testing::HasSubstr("\"version\""));
}

TEST(ResourceName, IsTakenWithAndWithoutItsPrefix) {
  EXPECT_EQ(*ResourceName("jobs/", "a"), "jobs/a");
  EXPECT_EQ(*ResourceName("jobs/", "jobs/a"), "jobs/a");
  for (const char* name : {"", "jobs/", "files/a", "jobs/a/b", "a\n"}) {
    EXPECT_EQ(ResourceName("jobs/", name).status().code(), absl::StatusCode::kInvalidArgument)
        << name;
  }
}

TEST(ModelId, HasOnlyWhatIdsMayHave) {
  EXPECT_EQ(ModelId("novelist-3m"), "novelist-3m");
  EXPECT_EQ(ModelId("Llama 3 (8B)"), "Llama-3--8B-");
  EXPECT_EQ(ModelId(std::string(80, 'x')).size(), 63u);
  EXPECT_EQ(ModelId(""), "model");
}

TEST(Uuid, FollowsFromTheContentOrIsNew) {
  const std::string hex = "00112233445566778899aabbccddeeff" + std::string(32, '0');
  EXPECT_EQ(UuidOfSha256(hex), "00112233-4455-8677-8899-aabbccddeeff");
  EXPECT_THAT(RandomUuid(), ::testing::MatchesRegex("[0-9a-f]+-[0-9a-f]+-4[0-9a-f]+-[89ab][0-9a-f]+"
                                                    "-[0-9a-f]+"));
  EXPECT_EQ(RandomUuid().size(), 36u);
  EXPECT_NE(RandomUuid(), RandomUuid());
}

}  // namespace
}  // namespace lemo::cli
