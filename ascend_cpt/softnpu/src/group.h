// A communicator between processes of this machine: shared memory without a name, barriers, and a queue of bytes for
// every pair of ranks.
//
// The memory is a memfd and the meeting point a socket of the abstract namespace, so the kernel removes both with the
// last process, however it ended. A rank holds a lock on its byte of the memfd; the kernel drops it when the process
// ends, and whoever waits for the rank sees that within kPollMs. Nothing spins: waiting is a futex.
#pragma once
#include <atomic>
#include <mutex>
#include "internal.h"

namespace softnpu {

constexpr uint32_t kMaxRanks = 64;
constexpr size_t kChunkBytes = 4 << 20;  // of each rank in one round of a collective
constexpr int kPollMs = 200;

// What a rank is doing in a collective: all ranks must do the same.
struct Operation {
  char name[24];
  uint64_t count;
  int32_t dtype, reduction, root;
};

struct RingHeader {
  std::atomic<uint64_t> written, read;           // bytes since the beginning
  std::atomic<uint32_t> write_signal, read_signal;  // futexes: count the changes
};

struct Header {
  std::atomic<uint32_t> num_arrived, generation;
  std::atomic<uint64_t> num_rounds[kMaxRanks];  // rounds that each rank has begun, for the message after a time-out
  Operation operations[2][kMaxRanks];
  RingHeader rings[kMaxRanks * kMaxRanks];
};

class Group {
 public:
  // Meets the other ranks at `name`. Throws Error when not all have come in time.
  static Group *join(const std::string &name, const std::string &label, uint32_t rank, uint32_t size);

  uint32_t rank() const { return rank_; }
  uint32_t size() const { return size_; }
  const std::string &label() const { return label_; }
  const std::string &name() const { return name_; }

  // One round of a collective: calls publish(own slot), waits until all ranks have published, checks that all do the
  // same. The slots stay as they are until the round after the next begins.
  template <class F> void begin_round(const Operation &operation, F publish) {
    start_round(operation);
    publish(slot(rank_));
    wait_for_all(operation.name);
    compare_operations(operation);
  }
  void wait_for_all(const char *what);
  char *slot(uint32_t rank) const { return slots_ + (parity_ * (size_ + 1) + rank) * kChunkBytes; }
  char *shared_result() const { return slot(size_); }

  // A message of `bytes` bytes; sending waits only when the queue is full.
  void send(uint32_t to, const void *data, size_t bytes);
  void receive(uint32_t from, void *data, size_t bytes);

  std::mutex collective_lock;  // held by a collective's thread from the first round to the last

 private:
  Group() = default;
  void map(int fd);
  void lock_own_byte() const;
  bool is_alive(uint32_t rank) const;
  void start_round(const Operation &operation);
  void compare_operations(const Operation &own) const;
  void check_rank(uint32_t rank, const std::string &what) const;
  template <class P> void wait_on(std::atomic<uint32_t> &word, P is_ready, uint32_t awaited, const std::string &what);
  std::string describe_missing() const;
  RingHeader &ring(uint32_t from, uint32_t to) const { return header_->rings[from * kMaxRanks + to]; }
  char *ring_data(uint32_t from, uint32_t to) const { return rings_ + (from * size_ + to) * ring_bytes_; }
  void put(uint32_t to, const char *data, size_t bytes);
  void take(uint32_t from, char *data, size_t bytes);

  friend class Meeting;
  std::string name_, label_;
  uint32_t rank_ = 0, size_ = 1;
  int fd_ = -1;
  Header *header_ = nullptr;
  char *slots_ = nullptr, *rings_ = nullptr;
  size_t ring_bytes_ = 0, total_bytes_ = 0;
  uint64_t round_ = 0;
  uint32_t parity_ = 0;
  std::mutex send_locks_[kMaxRanks], receive_locks_[kMaxRanks];
};

// Creates a meeting point for rank 0 of this process and returns its name.
std::string open_meeting_point();

// Seconds from an environment variable of HCCL, or the default.
int read_seconds(const char *variable, int otherwise);

}  // namespace softnpu
