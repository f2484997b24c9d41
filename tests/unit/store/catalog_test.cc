// Files and models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

using testing::ElementsAre;

lemo::v1::File SampleFile(const std::string& id, const std::string& sha256) {
  lemo::v1::File file;
  file.set_name("files/" + id);
  file.set_display_name(id + ".jsonl");
  file.set_bytes(3);
  file.set_sha256(sha256);
  return file;
}

TEST(Files, CreateFindDelete) {
  const ScratchDir scratch;
  {
    const auto store = MustOpen(scratch / "db");
    ASSERT_TRUE(store->CreateFile(SampleFile("a", "s1"), "upload-a").ok());
    ASSERT_TRUE(store->CreateFile(SampleFile("b", "s1"), "").ok());
    ASSERT_TRUE(store->CreateFile(SampleFile("c", "s2"), "").ok());
    EXPECT_EQ(store->CreateFile(SampleFile("a", "s3"), "").code(),
              absl::StatusCode::kAlreadyExists);
    EXPECT_EQ(store->CreateFile(SampleFile("d", "s3"), "upload-a").code(),
              absl::StatusCode::kAlreadyExists);
  }
  const auto store = MustOpen(scratch / "db");
  EXPECT_EQ(store->GetFile("files/a")->display_name(), "a.jsonl");
  EXPECT_EQ((*store->FindUpload("upload-a"))->name(), "files/a");
  EXPECT_FALSE(store->FindUpload("upload-b")->has_value());
  EXPECT_FALSE(store->FindUpload("")->has_value()) << "no upload id is not an id";
  EXPECT_FALSE(*store->HasContent("s3"));
  EXPECT_TRUE(*store->HasContent("s1"));
  ASSERT_TRUE(store->DeleteFile("files/a").ok());
  EXPECT_TRUE(*store->HasContent("s1")) << "another file has the same content";
  ASSERT_TRUE(store->DeleteFile("files/b").ok());
  EXPECT_FALSE(*store->HasContent("s1"));
  EXPECT_EQ(store->DeleteFile("files/a"), absl::NotFoundError("files/a: no such file"));
  EXPECT_EQ(store->GetFile("files/a").status(), absl::NotFoundError("files/a: no such file"));
}

TEST(Files, ADeletedFileForgetsItsUpload) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  ASSERT_TRUE(store->CreateFile(SampleFile("a", "s1"), "upload").ok());
  ASSERT_TRUE(store->DeleteFile("files/a").ok());
  EXPECT_FALSE(store->FindUpload("upload")->has_value());
  ASSERT_TRUE(store->CreateFile(SampleFile("b", "s2"), "upload").ok());
  EXPECT_EQ((*store->FindUpload("upload"))->name(), "files/b");
}

TEST(Files, PagesNewestFirst) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  for (const char* id : {"c", "a", "b"}) {
    ASSERT_TRUE(store->CreateFile(SampleFile(id, "s"), "").ok());
  }
  const auto first = store->ListFiles(2, "");
  ASSERT_EQ(first->files.size(), 2);
  EXPECT_EQ(first->files[0].name(), "files/b");
  EXPECT_EQ(first->files[1].name(), "files/a");
  ASSERT_TRUE(store->DeleteFile("files/a").ok()) << "the place outlives the file";
  const auto second = store->ListFiles(2, first->next_token);
  ASSERT_EQ(second->files.size(), 1);
  EXPECT_EQ(second->files[0].name(), "files/c");
  EXPECT_EQ(second->next_token, "");
  EXPECT_EQ(store->ListFiles(2, "x").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Models, CreateListDelete) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  for (const char* id : {"models/b", "models/a"}) {
    lemo::v1::Model model;
    model.set_name(id);
    model.set_parameters(8'000'000'000);
    ASSERT_TRUE(store->CreateModel(model).ok());
    EXPECT_EQ(store->CreateModel(model).code(), absl::StatusCode::kAlreadyExists);
  }
  std::vector<std::string> names;
  const auto models = store->ListModels();
  for (const auto& model : *models) names.push_back(model.name());
  EXPECT_THAT(names, ElementsAre("models/a", "models/b"));
  EXPECT_EQ(store->GetModel("models/a")->parameters(), 8'000'000'000);
  lemo::v1::Model other;
  other.set_name("models/a");
  other.add_files()->set_path("config.json");
  ASSERT_TRUE(store->ReplaceModel(other).ok());
  EXPECT_EQ(store->GetModel("models/a")->files(0).path(), "config.json");
  EXPECT_EQ(store->GetModel("models/b")->parameters(), 8'000'000'000);
  other.set_name("models/c");
  EXPECT_EQ(store->ReplaceModel(other), absl::NotFoundError("models/c: no such model"));
  ASSERT_TRUE(store->DeleteModel("models/a").ok());
  EXPECT_EQ(store->DeleteModel("models/a"), absl::NotFoundError("models/a: no such model"));
  EXPECT_EQ(store->GetModel("models/a").status(), absl::NotFoundError("models/a: no such model"));
}

}  // namespace
}  // namespace lemo::coordinator
