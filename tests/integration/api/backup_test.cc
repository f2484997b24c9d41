// A backup made under load, and a coordinator that goes on from it.
#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "common/files.h"
#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using lemo::v1::Job;
using testing::HasSubstr;

class BackupTest : public CoordinatorTest {
 protected:
  std::map<std::string, Job> AllJobs() {
    std::map<std::string, Job> all;
    lemo::v1::ListJobsRequest request;
    request.set_page_size(1000);
    do {
      lemo::v1::ListJobsResponse page;
      EXPECT_TRUE(jobs_->ListJobs(Patiently().get(), request, &page).ok());
      for (const Job& job : page.jobs()) all[job.name()] = job;
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    return all;
  }
  std::vector<lemo::v1::File> AllFiles() {
    std::vector<lemo::v1::File> all;
    lemo::v1::ListFilesRequest request;
    request.set_page_size(1000);
    do {
      lemo::v1::ListFilesResponse page;
      EXPECT_TRUE(files_->ListFiles(Patiently().get(), request, &page).ok());
      all.insert(all.end(), page.files().begin(), page.files().end());
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    return all;
  }
  void Delete(const std::string& file) {
    lemo::v1::DeleteFileRequest request;
    request.set_name(file);
    google::protobuf::Empty nothing;
    EXPECT_TRUE(files_->DeleteFile(Patiently().get(), request, &nothing).ok());
  }
};

TEST_F(BackupTest, UnderLoadItHasAllAndACoordinatorGoesOnFromIt) {
  Start("data", {"--lease-seconds", "60"});
  Placed placed = Place();
  lemo::v1::AgentMessage log;
  *log.mutable_log()->mutable_id() = placed.id;
  log.mutable_log()->mutable_chunk()->set_data("what a rank wrote");
  placed.agent->Say(log);
  Succeed(placed, "the adapter");
  placed.agent.reset();  // further jobs wait

  std::atomic<bool> stop = false;
  std::atomic<int> rounds = 0;
  std::vector<std::thread> load;
  for (int t = 0; t < 3; ++t) {
    load.emplace_back([&, t] {
      for (int i = 0; !stop; ++i) {
        const std::string data = "{\"text\": \"" + std::to_string(t * 1'000'000 + i) + "\"}\n";
        const std::string file = Upload(data);
        if (i % 2 == 0) {
          Submit(Spec(file));
        } else {
          Delete(file);
        }
        ++rounds;
      }
    });
  }
  EXPECT_TRUE(Comes([&] { return rounds > 20; }));
  std::vector<std::string> ids;
  for (const char* id : {"first", "second", "third"}) {
    lemo::v1::CreateBackupRequest request;
    request.set_backup_id(id);
    lemo::v1::Backup backup;
    const grpc::Status status = admin_->CreateBackup(Patiently().get(), request, &backup);
    EXPECT_TRUE(status.ok()) << id << status.error_message();
    EXPECT_GT(backup.jobs(), 10);
    EXPECT_EQ(backup.path(), (scratch_ / "data/backups" / id).lexically_normal().string());
    const int now = rounds;
    EXPECT_TRUE(Comes([&] { return rounds > now + 5; })) << "the service goes on";
  }
  stop = true;
  for (std::thread& thread : load) thread.join();
  const std::map<std::string, Job> before = AllJobs();
  EXPECT_EQ(Stop(), 0);

  // On a copy, which leaves the backup as it is.
  fs::copy(scratch_ / "data/backups/third", scratch_ / "restored", fs::copy_options::recursive);
  Start("restored", {"--lease-seconds", "60"});
  const std::map<std::string, Job> after = AllJobs();
  EXPECT_GT(after.size(), 10);
  for (const auto& [name, job] : after) {
    ASSERT_EQ(before.count(name), 1);
    EXPECT_EQ(job.spec().run().SerializeAsString(),
              before.at(name).spec().run().SerializeAsString());
  }
  const std::vector<lemo::v1::File> files = AllFiles();
  EXPECT_GT(files.size(), 5);
  for (const lemo::v1::File& file : files) {
    EXPECT_EQ(Sha256Hex(Download(file.name())), file.sha256());
  }
  EXPECT_EQ(Get(placed.id.job()).state(), Job::SUCCEEDED);
  EXPECT_EQ(DownloadArtifact(placed.id.job(), "adapter/weights"), "the adapter");
  lemo::v1::ReadLogsRequest read;
  read.set_name(placed.id.job());
  const auto context = Patiently();
  const auto logs = jobs_->ReadLogs(context.get(), read);
  lemo::v1::LogChunk chunk;
  ASSERT_TRUE(logs->Read(&chunk));
  EXPECT_EQ(chunk.data(), "what a rank wrote");

  // Jobs that waited are placed, in their order.
  Agent agent(Dial());
  agent.Hello("b");
  const auto assigned = agent.Hear([](const auto& message) { return message.has_assign(); });
  ASSERT_TRUE(assigned.has_assign());
  Placed next{std::make_unique<Agent>(Dial()), assigned.assign().id()};
  EXPECT_EQ(after.count(next.id.job()), 1);
  lemo::v1::Artifact artifact;
  EXPECT_TRUE(PutResult(next.id, "adapter/weights", "another", &artifact).ok());
  EXPECT_EQ(Stop(), 0);
}

TEST_F(BackupTest, TheCommandLineMakesAndListsThem) {
  Start();
  std::string output;
  const std::vector<std::string> at = {"--coordinator", address_};
  auto run = [&](std::vector<std::string> args) {
    output.clear();
    args.insert(args.end(), at.begin(), at.end());
    return Run(LEMO_PROGRAM, args, &output);
  };
  Ending ending = run({"admin", "backup", "--id", "b1"});
  EXPECT_EQ(ending.code, 0) << ending.said;
  EXPECT_THAT(output, HasSubstr("backups/b1: 0 jobs, 0 files"));
  EXPECT_THAT(output, HasSubstr("data/backups/b1 on the coordinator's host"));
  ending = run({"admin", "backup", "--id", "b1"});
  EXPECT_EQ(ending.code, 2);
  EXPECT_THAT(ending.said, HasSubstr("backups/b1 is there already"));
  EXPECT_EQ(run({"admin", "backup", "--id", "../x"}).code, 2);
  EXPECT_EQ(run({"admin", "backup", "-o", "json"}).code, 0);
  EXPECT_THAT(output, HasSubstr("\"path\": "));
  EXPECT_EQ(run({"admin", "backups"}).code, 0);
  EXPECT_THAT(output, testing::ContainsRegex("NAME +CREATED +JOBS +FILES +SIZE +PATH"));
  EXPECT_THAT(output, HasSubstr("backups/b1"));
  EXPECT_EQ(run({"admin", "backups", "-o", "yaml"}).code, 0);
  EXPECT_THAT(output, HasSubstr("name: backups/b1"));
  EXPECT_EQ(Stop(), 0);
}

}  // namespace
}  // namespace lemo::coordinator
