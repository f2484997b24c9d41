#include "worker/train/report/event_sink.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>

#include "gmock/gmock.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/delimited_message_util.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/sample_run.h"

namespace lemo::train {
namespace {

using ::lemo::testing::SampleStep;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

lemo::v1::RunEvent StepEventOf(int step) {
  lemo::v1::RunEvent event;
  *event.mutable_step() = SampleStep(step, 40);
  return event;
}

// What is ready to be read, without waiting for more.
std::string Drain(int fd) {
  fcntl(fd, F_SETFL, O_NONBLOCK);
  std::string out;
  char buffer[4096];
  for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;) out.append(buffer, got);
  return out;
}

class Pipe {
 public:
  Pipe() { EXPECT_EQ(pipe2(ends_, O_CLOEXEC), 0); }
  ~Pipe() {
    CloseReader();
    close(ends_[1]);
  }
  int writer() const { return ends_[1]; }
  std::string Text() const { return Drain(ends_[0]); }
  void CloseReader() {
    if (ends_[0] >= 0) close(ends_[0]);
    ends_[0] = -1;
  }

 private:
  int ends_[2];
};

TEST(EventToJson, IsFlatWithTypeFirstAndEveryField) {
  lemo::v1::RunEvent event;
  event.set_sequence(3);
  event.set_unix_seconds(1.5);
  event.mutable_result()->set_train_loss(NAN);
  event.mutable_result()->mutable_peak_bytes()->set_total(int64_t{1} << 40);
  const auto json = nlohmann::ordered_json::parse(EventToJson(event));
  EXPECT_EQ(json.begin().key(), "type");
  EXPECT_EQ(json["type"], "result");
  EXPECT_EQ(json["sequence"], 3);
  EXPECT_TRUE(json["train_loss"].is_null());
  EXPECT_EQ(json["peak_bytes"]["total"], int64_t{1} << 40);
  for (const char* key : {"eval_loss_before", "eval_loss", "steps", "labelled_tokens",
                          "tokens_per_second", "adapter_dir", "publish_max_logit_difference"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  for (const char* key :
       {"weights", "trainable", "saved_activations", "transient", "loss", "total"}) {
    EXPECT_TRUE(json["peak_bytes"].contains(key)) << key;
  }
}

TEST(EventToJson, TypesAndOddText) {
  lemo::v1::RunEvent event;
  EXPECT_EQ(nlohmann::json::parse(EventToJson(event))["type"], "");
  event.mutable_error()->set_message("line\nbreak \xff");
  event.mutable_error()->add_violations()->set_line(7);
  const std::string text = EventToJson(event);
  EXPECT_THAT(text, Not(HasSubstr("\n")));
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json["type"], "error");
  EXPECT_EQ(json["violations"][0]["line"], 7);
}

TEST(EventSink, JsonWritesALineAnEventNumberedFromOne) {
  Pipe pipe;
  auto sink = MakeEventSink("json", pipe.writer());
  ASSERT_TRUE(sink.ok());
  EXPECT_EQ((*sink)->Emit(StepEventOf(1)).sequence(), 1);
  EXPECT_GT((*sink)->Emit(StepEventOf(2)).unix_seconds(), 1e9);
  std::istringstream lines(pipe.Text());
  std::vector<int> sequences;
  for (std::string line; std::getline(lines, line);) {
    sequences.push_back(nlohmann::json::parse(line)["sequence"]);
  }
  EXPECT_THAT(sequences, ElementsAre(1, 2));
}

TEST(EventSink, DescriptorGetsDelimitedMessages) {
  Pipe pipe;
  auto sink = MakeEventSink("fd:" + std::to_string(pipe.writer()), -1);
  ASSERT_TRUE(sink.ok()) << sink.status();
  const auto first = (*sink)->Emit(StepEventOf(1));
  const auto second = (*sink)->Emit(StepEventOf(2));
  const std::string bytes = pipe.Text();
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  lemo::v1::RunEvent read;
  bool end = false;
  for (const auto& expected : {first, second}) {
    ASSERT_TRUE(google::protobuf::util::ParseDelimitedFromZeroCopyStream(&read, &stream, &end));
    EXPECT_EQ(read.SerializeAsString(), expected.SerializeAsString());
  }
  EXPECT_FALSE(google::protobuf::util::ParseDelimitedFromZeroCopyStream(&read, &stream, &end));
  EXPECT_TRUE(end);
}

TEST(EventToJson, StepsOfAllRowsDoNotSpeakOfDroppingThem) {
  lemo::v1::RunEvent event = StepEventOf(1);
  EXPECT_FALSE(nlohmann::json::parse(EventToJson(event)).contains("sparsity"));
  event.mutable_step()->mutable_sparsity()->add_attention_kept(0.5);
  EXPECT_EQ(nlohmann::json::parse(EventToJson(event))["sparsity"]["attention_kept"][0], 0.5);
  event.mutable_eval()->set_loss(3);
  EXPECT_FALSE(nlohmann::json::parse(EventToJson(event)).contains("sparse_loss"));
  event.mutable_eval()->set_sparse_loss(3);
  event.mutable_eval()->set_sparse_perplexity(20);
  EXPECT_EQ(nlohmann::json::parse(EventToJson(event))["sparse_loss"], 3);
}

// A reader of a descriptor bounds what it takes: the agent would end the run.
TEST(EventSink, DescriptorsGetNoPictureThatIsTooLarge) {
  Pipe pipe;
  auto sink = MakeEventSink("fd:" + std::to_string(pipe.writer()), -1);
  ASSERT_TRUE(sink.ok()) << sink.status();
  lemo::v1::RunEvent picture;
  picture.mutable_selection()->add_attention(std::string(600'000, 1));
  EXPECT_EQ((*sink)->Emit(StepEventOf(1)).sequence(), 1);
  const auto stamped = (*sink)->Emit(picture);
  EXPECT_EQ(stamped.sequence(), 0);
  EXPECT_GT(stamped.unix_seconds(), 1e9);
  EXPECT_EQ((*sink)->Emit(StepEventOf(2)).sequence(), 2);
  EXPECT_LT(pipe.Text().size(), 1000u);
}

TEST(EventSink, AReaderThatIsGoneEndsNothing) {
  for (const char* format : {"json", "pretty", "fd"}) {
    Pipe pipe;
    const std::string name =
        std::string(format) == "fd" ? "fd:" + std::to_string(pipe.writer()) : format;
    auto sink = MakeEventSink(name, pipe.writer());
    ASSERT_TRUE(sink.ok());
    (*sink)->Emit(StepEventOf(1));
    pipe.CloseReader();
    (*sink)->Emit(StepEventOf(39));
    EXPECT_EQ((*sink)->Emit(StepEventOf(40)).sequence(), 3);
  }
}

TEST(EventSink, RefusesOtherFormats) {
  const int read_only = open("/dev/null", O_RDONLY);
  for (const std::string& format :
       {std::string("xml"), std::string(""), std::string("fd:"), std::string("fd:-1"),
        std::string("fd:x"), std::string("fd:1000000"), "fd:" + std::to_string(read_only)}) {
    const auto sink = MakeEventSink(format, 1);
    EXPECT_EQ(sink.status().code(), absl::StatusCode::kInvalidArgument) << format;
    EXPECT_THAT(std::string(sink.status().message()), HasSubstr("--events"));
  }
  close(read_only);
}

// What a terminal of 60 columns shows for a phase and two steps.
std::string OnATerminal() {
  int master = -1, terminal = -1;
  winsize size{};
  size.ws_row = 20;
  size.ws_col = 60;
  if (openpty(&master, &terminal, nullptr, nullptr, &size) != 0) return "";
  auto sink = MakeEventSink("pretty", terminal);
  EXPECT_TRUE(sink.ok());
  lemo::v1::RunEvent event;
  event.mutable_phase()->set_name("train");
  (*sink)->Emit(event);
  (*sink)->Emit(StepEventOf(1));
  (*sink)->Emit(StepEventOf(40));
  const std::string text = Drain(master);
  close(terminal);
  close(master);
  return text;
}

TEST(EventSink, PrettyKnowsTheTerminal) {
  setenv("TERM", "xterm", 1);
  unsetenv("NO_COLOR");
  std::string text = OnATerminal();
  if (text.empty()) GTEST_SKIP() << "no pseudo-terminals here";
  EXPECT_THAT(text, HasSubstr("\x1b[1mtrain"));
  const size_t at = text.rfind("\r\x1b[K") + 4;
  EXPECT_LE(text.find('\r', at) - at, 59u) << text;

  setenv("NO_COLOR", "1", 1);
  text = OnATerminal();
  EXPECT_THAT(text, Not(HasSubstr("\x1b[1m")));
  EXPECT_THAT(text, HasSubstr("\r\x1b[K"));

  setenv("TERM", "dumb", 1);
  EXPECT_THAT(OnATerminal(), Not(HasSubstr("\x1b")));
}

}  // namespace
}  // namespace lemo::train
