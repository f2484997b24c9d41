#include "worker/agent/event_reader.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <sstream>

#include "google/protobuf/util/delimited_message_util.h"

namespace lemo::agent {
namespace {

class EventReaderTest : public testing::Test {
 protected:
  EventReaderTest() {
    EXPECT_EQ(::pipe2(ends_, O_CLOEXEC), 0);
    ::fcntl(ends_[0], F_SETFL, O_NONBLOCK);
  }
  ~EventReaderTest() override {
    ::close(ends_[0]);
    Close();
  }
  void Send(const std::string& bytes) {
    ASSERT_EQ(::write(ends_[1], bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
  void Close() {
    if (ends_[1] >= 0) ::close(ends_[1]);
    ends_[1] = -1;
  }
  static std::string Record(int step) {
    lemo::v1::RunEvent event;
    event.mutable_step()->set_step(step);
    std::ostringstream out;
    google::protobuf::util::SerializeDelimitedToOstream(event, &out);
    return out.str();
  }
  auto Read() { return reader_.Read(ends_[0]); }

  int ends_[2] = {-1, -1};
  EventReader reader_;
};

TEST_F(EventReaderTest, TakesEventsApartHoweverTheyCome) {
  EXPECT_TRUE(Read()->empty());  // nothing yet is no end
  EXPECT_FALSE(reader_.ended());
  const std::string bytes = Record(1) + Record(300) + Record(70'000);
  std::vector<int> steps;
  for (const char byte : bytes) {
    Send({byte});
    const auto events = Read();
    ASSERT_TRUE(events.ok()) << events.status();
    for (const auto& event : *events) steps.push_back(event.step().step());
  }
  EXPECT_EQ(steps, (std::vector<int>{1, 300, 70'000}));
  Send(bytes);
  EXPECT_EQ(Read()->size(), 3u);
  Close();
  EXPECT_TRUE(Read()->empty());
  EXPECT_TRUE(reader_.ended());
}

TEST_F(EventReaderTest, DropsAnEventWhoseWriterDied) {
  Send(Record(1) + Record(2).substr(0, 3));
  EXPECT_EQ(Read()->size(), 1u);
  Close();
  EXPECT_TRUE(Read()->empty());
  EXPECT_TRUE(reader_.ended());
}

TEST_F(EventReaderTest, TakesAnEmptyEvent) {
  Send(std::string(1, '\0'));
  EXPECT_EQ(Read()->size(), 1u);
}

TEST_F(EventReaderTest, RefusesNoise) {
  Send(std::string(16, '\xff'));
  EXPECT_FALSE(Read().ok());
}

TEST_F(EventReaderTest, RefusesAnEventThatIsTooLong) {
  Send("\xff\xff\xff\x7f");
  EXPECT_FALSE(Read().ok());
}

TEST_F(EventReaderTest, RefusesBytesThatAreNoEvent) {
  Send(std::string("\x02\x0b\x0b", 3));
  EXPECT_FALSE(Read().ok());
}

}  // namespace
}  // namespace lemo::agent
