#include "coordinator/api/model_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>

#include "common/files.h"
#include "coordinator/api/job_checks.h"
#include "google/protobuf/util/time_util.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kFixture[] = LEMO_SOURCE_DIR "/tests/fixtures/stories260k";

bool GoOn() { return true; }

// The service behind a real connection, over a copy of a small model.
class Models : public testing::Test {
 protected:
  Models() {
    std::string name = (fs::path(testing::TempDir()) / "modelsXXXXXX").string();
    root_ = ::mkdtemp(name.data());
    fs::create_directories(model());
    for (const char* file : {"config.json", "model.safetensors", "tokenizer.json",
                             "tokenizer_config.json", "special_tokens_map.json"}) {
      fs::copy_file(fs::path(kFixture) / file, model() / file);
    }
    store_ = OpenSqliteStore((root_ / "db").string()).value();
    service_ = std::make_unique<ModelServiceImpl>(store_.get());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = lemo::v1::ModelService::NewStub(grpc::CreateChannel(
        "127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  }
  ~Models() override {
    server_->Shutdown();
    fs::remove_all(root_);
  }

  fs::path model() const { return root_ / "model"; }

  grpc::Status Add(lemo::v1::Model* added, const std::string& id = "m") {
    grpc::ClientContext context;
    lemo::v1::AddModelRequest request;
    request.set_model_id(id);
    request.set_path(model().string());
    return stub_->AddModel(&context, request, added);
  }

  grpc::Status Download(const std::string& path, int64_t offset, std::string* bytes,
                        std::string* sha256 = nullptr) {
    grpc::ClientContext context;
    lemo::v1::DownloadModelFileRequest request;
    request.set_name("models/m");
    request.set_path(path);
    request.set_offset(offset);
    const auto reader = stub_->DownloadModelFile(&context, request);
    bytes->clear();
    for (lemo::v1::DataChunk chunk; reader->Read(&chunk);) {
      EXPECT_EQ(chunk.offset(), offset + static_cast<int64_t>(bytes->size()));
      EXPECT_LE(chunk.data().size(), 1u << 20);
      *bytes += chunk.data();
      if (sha256 != nullptr) *sha256 = chunk.sha256();
    }
    return reader->Finish();
  }

  fs::path root_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<ModelServiceImpl> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<lemo::v1::ModelService::Stub> stub_;
};

TEST_F(Models, AModelIsItsFiles) {
  lemo::v1::Model added;
  ASSERT_TRUE(Add(&added).ok());
  std::vector<std::string> paths;
  int64_t bytes = 0;
  for (const lemo::v1::ModelFile& file : added.files()) {
    paths.push_back(file.path());
    bytes += file.bytes();
    EXPECT_EQ(file.sha256(), *Sha256HexOfFile(model() / file.path()));
  }
  EXPECT_THAT(paths, ElementsAre("config.json", "model.safetensors", "special_tokens_map.json",
                                 "tokenizer.json", "tokenizer_config.json"));
  EXPECT_EQ(added.bytes(), bytes);
  EXPECT_EQ(added.family(), "llama");
  EXPECT_EQ(added.fingerprint().size(), 64u);
  // What lists show is the same.
  grpc::ClientContext context;
  lemo::v1::ListModelsResponse list;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 1);
  EXPECT_EQ(list.models(0).files_size(), 5);
  // Every file is part of the fingerprint, its place is not.
  fs::copy(model(), root_ / "copy");
  EXPECT_EQ(InspectModel((root_ / "copy").string(), &GoOn)->fingerprint(), added.fingerprint());
  std::ofstream(root_ / "copy" / "chat_template.jinja") << "{{ messages }}";
  EXPECT_NE(InspectModel((root_ / "copy").string(), &GoOn)->fingerprint(), added.fingerprint());
}

TEST_F(Models, ACacheOfLinksIsTheSameModel) {
  const std::string fingerprint = InspectModel(model().string(), &GoOn)->fingerprint();
  const fs::path snapshot = root_ / "snapshots" / "1";
  fs::create_directories(snapshot);
  for (const auto& file : fs::directory_iterator(model())) {
    fs::create_symlink(file.path(), snapshot / file.path().filename());
  }
  EXPECT_EQ(InspectModel(snapshot.string(), &GoOn)->fingerprint(), fingerprint);
}

TEST_F(Models, InspectionEndsWhenNobodyWaits) {
  int asked = 0;
  const auto stopped = InspectModel(model().string(), [&asked] { return ++asked < 3; });
  EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(asked, 3);
}

TEST_F(Models, ADownloadIsTheFileFromAnyOffset) {
  std::string text;  // of several chunks
  for (int i = 0; text.size() < 5u << 19; ++i) text += std::to_string(i);
  std::ofstream(model() / "merges.txt") << text;
  lemo::v1::Model added;
  ASSERT_TRUE(Add(&added).ok());
  std::string bytes, sha256;
  ASSERT_TRUE(Download("merges.txt", 0, &bytes, &sha256).ok());
  EXPECT_EQ(bytes, text);
  EXPECT_EQ(sha256, Sha256Hex(text));
  ASSERT_TRUE(Download("merges.txt", 12345, &bytes, &sha256).ok());
  EXPECT_EQ(bytes, text.substr(12345));
  EXPECT_EQ(sha256, Sha256Hex(text));
  ASSERT_TRUE(Download("merges.txt", text.size(), &bytes, &sha256).ok());
  EXPECT_EQ(bytes, "");
  EXPECT_EQ(Download("merges.txt", text.size() + 1, &bytes).error_code(),
            grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(Download("merges.txt", -1, &bytes).error_code(), grpc::StatusCode::OUT_OF_RANGE);
}

TEST_F(Models, OnlyFilesOfTheModelAreSent) {
  lemo::v1::Model added;
  ASSERT_TRUE(Add(&added).ok());
  std::ofstream(model() / "secret.txt") << "s";
  std::string bytes;
  for (const char* path : {"secret.txt", "../db", "/etc/passwd", "", "./config.json"}) {
    EXPECT_EQ(Download(path, 0, &bytes).error_code(), grpc::StatusCode::NOT_FOUND) << path;
    EXPECT_EQ(bytes, "");
  }
}

TEST_F(Models, AFileThatChangedIsRefusedWithWhatToDo) {
  lemo::v1::Model added;
  ASSERT_TRUE(Add(&added).ok());
  std::string bytes;
  const auto expect_refusal = [&](const char* path, const char* how) {
    const grpc::Status status = Download(path, 0, &bytes);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << path;
    EXPECT_THAT(status.error_message(), HasSubstr(how));
    EXPECT_THAT(status.error_message(), HasSubstr("lemo model add m " + model().string()));
  };
  fs::resize_file(model() / "tokenizer.json", 10);
  expect_refusal("tokenizer.json", "another size");
  fs::last_write_time(model() / "config.json",
                      fs::file_time_type::clock::now() + std::chrono::hours(1));
  expect_refusal("config.json", "written again");
  fs::remove(model() / "model.safetensors");
  expect_refusal("model.safetensors", "cannot be read");
  EXPECT_TRUE(Download("tokenizer_config.json", 0, &bytes).ok());
}

TEST_F(Models, OneOfAnOlderVersionIsCompletedByAddingItAgain) {
  lemo::v1::Model old;
  old.set_name("models/m");
  old.set_path(model().string());
  old.set_fingerprint("of config, tokenizer and weights");
  ASSERT_TRUE(store_->CreateModel(old).ok());

  lemo::v1::JobSpec spec;
  spec.mutable_run()->mutable_model()->set_path("models/m");
  JobRecord record;
  Violations violations;
  ASSERT_TRUE(CheckJobSpec(spec, store_.get(), &record, &violations).ok());
  EXPECT_THAT(std::string(violations.ToStatus().message()),
              HasSubstr("lemo model add m " + model().string()));

  lemo::v1::Model added;
  ASSERT_TRUE(Add(&added).ok());
  EXPECT_EQ(store_->GetModel("models/m")->files_size(), 5);
  EXPECT_EQ(Add(&added).error_code(), grpc::StatusCode::ALREADY_EXISTS);
  violations = {};
  ASSERT_TRUE(CheckJobSpec(spec, store_.get(), &record, &violations).ok());
  EXPECT_THAT(std::string(violations.ToStatus().message()), testing::Not(HasSubstr("model add")));
  EXPECT_EQ(record.model_files.size(), 5u);
  EXPECT_EQ(record.model_fingerprint, added.fingerprint());
}

}  // namespace
}  // namespace lemo::coordinator
