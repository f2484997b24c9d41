// Requests that nobody should send.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>

#include <cmath>
#include <limits>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

using grpc::StatusCode;
using lemo::v1::Job;
using testing::HasSubstr;

class RequestTest : public CoordinatorTest {
 protected:
  RequestTest() { Start(); }
  ~RequestTest() override {
    // Whatever was sent, the coordinator is well.
    Get(Submit(Spec(Upload("{}\n"))).name());
    EXPECT_EQ(Stop(), 0) << process_->Errors();
  }
  void SetUp() override { AddModel(); }

  // These bytes, as the request of a method; what came back in `answer`.
  grpc::Status SendBytes(const std::string& method, const std::string& bytes,
                         std::string* answer = nullptr) {
    grpc::GenericStub stub(Dial());
    grpc::CompletionQueue queue;
    const auto context = Patiently();
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    const auto call = stub.PrepareUnaryCall(context.get(), method, request, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    std::vector<grpc::Slice> slices;
    if (answer != nullptr && status.ok() && response.Dump(&slices).ok()) {
      for (const grpc::Slice& part : slices) {
        answer->append(reinterpret_cast<const char*>(part.begin()), part.size());
      }
    }
    return status;
  }
};

TEST_F(RequestTest, MalformedBytesAreRefused) {
  for (const char* method :
       {"/lemo.v1.JobService/SubmitJob", "/lemo.v1.JobService/GetJob",
        "/lemo.v1.FileService/UploadFile", "/lemo.v1.JobService/WatchJob",
        "/lemo.v1.WorkerService/Connect", "/lemo.v1.AdminService/CreateBackup"}) {
    for (const std::string& bytes :
         {std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
          std::string("\x0a\x7f"
                      "a"),
          std::string("\x0a\x02\xff\xfe"), std::string(70'000, '\x0b')}) {
      const grpc::Status status = SendBytes(method, bytes);
      EXPECT_FALSE(status.ok()) << method;
    }
  }
  EXPECT_EQ(SendBytes("/lemo.v1.JobService/NoSuchMethod", "").error_code(),
            StatusCode::UNIMPLEMENTED);
}

// What tools like grpcurl and probes of clusters rely on, by the bytes that they send.
TEST_F(RequestTest, HealthAndReflectionAnswerUnaided) {
  const auto text_field = [](int number, const std::string& text) {
    return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(text.size())} + text;
  };
  const std::vector<std::string> services = {"lemo.v1.JobService",    "lemo.v1.FileService",
                                             "lemo.v1.ModelService",  "lemo.v1.ClusterService",
                                             "lemo.v1.WorkerService", "lemo.v1.AdminService"};
  const char* const check = "/grpc.health.v1.Health/Check";
  constexpr char kServing[] = "\x08\x01";
  std::string server;
  ASSERT_TRUE(SendBytes(check, "", &server).ok());
  EXPECT_EQ(server, kServing);
  for (const std::string& service : services) {
    std::string answer;
    EXPECT_TRUE(SendBytes(check, text_field(1, service), &answer).ok()) << service;
    EXPECT_EQ(answer, kServing) << service;
  }
  EXPECT_EQ(SendBytes(check, text_field(1, "lemo.v1.NoService")).error_code(),
            StatusCode::NOT_FOUND);

  const char* const reflect = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  std::string listed;
  ASSERT_TRUE(SendBytes(reflect, text_field(7, "*"), &listed).ok());
  for (const std::string& service : services) {
    EXPECT_THAT(listed, HasSubstr(service));
    std::string file;
    ASSERT_TRUE(SendBytes(reflect, text_field(4, service), &file).ok());
    EXPECT_THAT(file, HasSubstr(".proto")) << service << " has no descriptor";
  }
  std::string jobs;
  ASSERT_TRUE(SendBytes(reflect, text_field(4, services[0]), &jobs).ok());
  EXPECT_THAT(jobs, HasSubstr("SubmitJob"));
}

TEST_F(RequestTest, OversizedMessagesAreRefused) {
  lemo::v1::SubmitJobRequest request;
  request.mutable_spec()->set_display_name(std::string(5 << 20, 'x'));
  Job job;
  const grpc::Status status = jobs_->SubmitJob(Patiently().get(), request, &job);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
}

TEST_F(RequestTest, NamesDoNotLeadAnywhere) {
  const std::vector<std::string> names = {"",
                                          "jobs",
                                          "jobs/",
                                          "jobs/..",
                                          "jobs/.",
                                          "jobs/../x",
                                          "/etc/passwd",
                                          "../jobs/a",
                                          "jobs/a/b",
                                          std::string("jobs/a\0b", 8),
                                          "files/a",
                                          "jobs/\n",
                                          "jobs/" + std::string(100'000, 'a'),
                                          "jobs/-a",
                                          "JOBS/a"};
  for (const std::string& name : names) {
    lemo::v1::GetJobRequest get;
    get.set_name(name);
    Job job;
    EXPECT_EQ(jobs_->GetJob(Patiently().get(), get, &job).error_code(),
              StatusCode::INVALID_ARGUMENT)
        << name.substr(0, 40);
    lemo::v1::ReadLogsRequest logs;
    logs.set_name(name);
    const auto context = Patiently();
    const auto reader = jobs_->ReadLogs(context.get(), logs);
    lemo::v1::LogChunk chunk;
    while (reader->Read(&chunk)) ADD_FAILURE() << "a log of " << name;
    EXPECT_EQ(reader->Finish().error_code(), StatusCode::INVALID_ARGUMENT);
  }
  for (const std::string& id :
       {std::string(".."), std::string("."), std::string("a/b"), std::string("/abs"),
        std::string("../x"), std::string("a\0b", 3), std::string(64, 'a'), std::string("-a"),
        std::string("a.tmp"), std::string("a\n")}) {
    lemo::v1::CreateBackupRequest backup;
    backup.set_backup_id(id);
    lemo::v1::Backup made;
    EXPECT_EQ(admin_->CreateBackup(Patiently().get(), backup, &made).error_code(),
              StatusCode::INVALID_ARGUMENT)
        << id;
  }
}

// Fields that a refused request is told of.
std::vector<std::string> FieldsOf(const grpc::Status& status) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details()));
  google::rpc::BadRequest bad;
  for (const auto& detail : rich.details()) {
    if (detail.Is<google::rpc::BadRequest>()) detail.UnpackTo(&bad);
  }
  std::vector<std::string> fields;
  for (const auto& violation : bad.field_violations()) fields.push_back(violation.field());
  return fields;
}

TEST_F(RequestTest, RanksAndTheirSplitAgree) {
  struct Case {
    int ranks, min_ranks, tensor, data;  // 0: not given
    std::string fault;                   // the one field; empty: none
  };
  for (const Case& one : std::vector<Case>{{4, 0, 0, 0, ""},
                                           {4, 0, 2, 2, ""},
                                           {4, 2, 2, 0, ""},
                                           {0, 0, 1, 1, ""},
                                           {-1, 0, 0, 0, "resources.ranks"},
                                           {5000, 0, 0, 0, "resources.ranks"},
                                           {4, 5, 0, 0, "resources.min_ranks"},
                                           {4, -1, 0, 0, "resources.min_ranks"},
                                           {4, 0, 2, 3, "run.parallel.data"},
                                           {4, 0, 0, 3, "run.parallel.data"},
                                           {4, 0, 3, 0, "run.parallel.tensor"},
                                           {0, 0, 2, 0, "run.parallel.tensor"},
                                           {4, 2, 2, 2, "run.parallel.data"}}) {
    lemo::v1::SubmitJobRequest request;
    lemo::v1::JobSpec& spec = *request.mutable_spec();
    spec = Spec(Upload("{}\n"));
    if (one.ranks != 0) spec.mutable_resources()->set_ranks(one.ranks);
    if (one.min_ranks != 0) spec.mutable_resources()->set_min_ranks(one.min_ranks);
    if (one.tensor != 0) spec.mutable_run()->mutable_parallel()->set_tensor(one.tensor);
    if (one.data != 0) spec.mutable_run()->mutable_parallel()->set_data(one.data);
    Job job;
    const grpc::Status status = jobs_->SubmitJob(Patiently().get(), request, &job);
    SCOPED_TRACE(spec.ShortDebugString());
    if (one.fault.empty()) {
      EXPECT_TRUE(status.ok()) << status.error_message();
    } else {
      EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
      EXPECT_THAT(FieldsOf(status), testing::ElementsAre(one.fault));
    }
  }
}

TEST_F(RequestTest, AllFaultsOfASpecAreToldAtOnce) {
  lemo::v1::SubmitJobRequest request;
  lemo::v1::JobSpec& spec = *request.mutable_spec();
  spec.set_display_name(std::string(64, 'x'));
  for (int i = 0; i < 17; ++i) (*spec.mutable_labels())["k" + std::to_string(i)] = "v";
  (*spec.mutable_labels())[""] = std::string(1000, 'v');
  spec.mutable_resources()->set_ranks(std::numeric_limits<int>::max());
  spec.mutable_resources()->set_device("tpu");
  spec.mutable_resources()->set_memory_bytes(-1);
  spec.mutable_restart()->set_limit(-1);
  spec.mutable_restart()->set_backoff_seconds(std::nan(""));
  spec.mutable_limits()->set_run_seconds(std::numeric_limits<double>::infinity());
  spec.mutable_limits()->set_disk_bytes(std::numeric_limits<int64_t>::min());
  spec.mutable_run()->mutable_model()->set_path("../m");
  spec.mutable_run()->mutable_data()->add_train()->set_path("files/../../etc/passwd");
  spec.mutable_run()->mutable_data()->add_eval()->set_path("files/none");
  Job job;
  const grpc::Status status = jobs_->SubmitJob(Patiently().get(), request, &job);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(
      FieldsOf(status),
      testing::IsSupersetOf({"display_name", "labels", "labels[\"\"]", "resources.ranks",
                             "resources.device", "resources.memory_bytes", "restart.limit",
                             "restart.backoff_seconds", "limits.run_seconds", "limits.disk_bytes",
                             "run.model.path", "run.data.train[0].path", "run.data.eval[0].path"}));
}

// What the checks at the door let pass goes into the file that the checking program reads.
TEST_F(RequestTest, OddNumbersInARunReachTheCheck) {
  lemo::v1::JobSpec spec = Spec(Upload("{}\n"));
  spec.mutable_run()->mutable_train()->set_learning_rate(std::nan(""));
  spec.mutable_run()->mutable_train()->set_steps(std::numeric_limits<int>::min());
  spec.set_display_name("\x7f\xc2\x80 \xf0\x9f\x98\x80");
  Await(Submit(spec).name(), Job::QUEUED);
}

TEST_F(RequestTest, ARequestIdStandsForOneRequest) {
  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = Spec(Upload("{}\n"));
  request.set_request_id("5a0c");
  Job first, second;
  ASSERT_TRUE(jobs_->SubmitJob(Patiently().get(), request, &first).ok());
  (*request.mutable_spec()->mutable_labels())["a"] = "b";
  const grpc::Status status = jobs_->SubmitJob(Patiently().get(), request, &second);
  EXPECT_EQ(status.error_code(), StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(status.error_message(), HasSubstr(first.name()));
  request.set_request_id(std::string(129, 'x'));
  EXPECT_EQ(jobs_->SubmitJob(Patiently().get(), request, &second).error_code(),
            StatusCode::INVALID_ARGUMENT);
}

TEST_F(RequestTest, AReadMaskLeavesTheFieldsItNames) {
  const Job whole = Submit(Spec(Upload("{}\n")));
  lemo::v1::GetJobRequest get;
  get.set_name(whole.name());
  get.mutable_read_mask()->add_paths("name");
  get.mutable_read_mask()->add_paths("spec.display_name");
  Job job;
  ASSERT_TRUE(jobs_->GetJob(Patiently().get(), get, &job).ok());
  Job wanted;
  wanted.set_name(whole.name());
  wanted.mutable_spec()->set_display_name(whole.spec().display_name());
  EXPECT_EQ(job.DebugString(), wanted.DebugString());

  lemo::v1::ListJobsRequest list;
  list.mutable_read_mask()->add_paths("name");
  lemo::v1::ListJobsResponse jobs;
  ASSERT_TRUE(jobs_->ListJobs(Patiently().get(), list, &jobs).ok());
  ASSERT_EQ(jobs.jobs_size(), 1);
  EXPECT_TRUE(jobs.jobs(0).spec().run().data().train().empty());
  list.mutable_read_mask()->add_paths("*");
  ASSERT_TRUE(jobs_->ListJobs(Patiently().get(), list, &jobs).ok());
  EXPECT_EQ(jobs.jobs(0).spec().run().data().train_size(), 1);

  for (const char* path : {"nothing", "spec.", "spec.labels.a", ""}) {
    get.mutable_read_mask()->clear_paths();
    get.mutable_read_mask()->add_paths(path);
    const grpc::Status status = jobs_->GetJob(Patiently().get(), get, &job);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << path;
    EXPECT_THAT(status.error_message(), HasSubstr("read_mask")) << path;
  }
}

TEST_F(RequestTest, ListsRefuseWhatTheyDidNotGive) {
  for (const auto& [filter, order, token, size] :
       std::vector<std::tuple<std::string, std::string, std::string, int>>{
           {"state = NONSENSE", "", "", 0},
           {std::string(100'000, '('), "", "", 0},
           {"", "drop table", "", 0},
           {"", "", "x", 0},
           {"", "", std::string(100'000, 'A'), 0},
           {"", "", "", -1}}) {
    lemo::v1::ListJobsRequest request;
    request.set_filter(filter);
    request.set_order_by(order);
    request.set_page_token(token);
    request.set_page_size(size);
    lemo::v1::ListJobsResponse response;
    EXPECT_EQ(jobs_->ListJobs(Patiently().get(), request, &response).error_code(),
              StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(RequestTest, ADownloadKnowsItsBounds) {
  const std::string file = Upload("{}\n");
  for (const int64_t offset : {int64_t{-1}, int64_t{4}, std::numeric_limits<int64_t>::max(),
                               std::numeric_limits<int64_t>::min()}) {
    lemo::v1::DownloadFileRequest request;
    request.set_name(file);
    request.set_offset(offset);
    const auto context = Patiently();
    const auto reader = files_->DownloadFile(context.get(), request);
    lemo::v1::DataChunk chunk;
    EXPECT_FALSE(reader->Read(&chunk));
    EXPECT_EQ(reader->Finish().error_code(),
              offset < 0 ? StatusCode::INVALID_ARGUMENT : StatusCode::OUT_OF_RANGE);
  }
}

}  // namespace
}  // namespace lemo::coordinator
