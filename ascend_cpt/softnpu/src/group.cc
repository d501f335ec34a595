// Shared memory of a communicator: rounds of collectives, and queues between pairs of ranks.
#include "group.h"
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace softnpu {

namespace {

constexpr uint32_t kEveryRank = UINT32_MAX;
constexpr size_t kPageBytes = 4096;
constexpr size_t kPunchBytes = 1 << 20;  // smaller pieces of a queue keep their memory for the next message

void futex_wait(std::atomic<uint32_t> &word, uint32_t seen) {
  timespec timeout{0, kPollMs * 1000000l};
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t> &word) { syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0); }

size_t round_up(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

// Virtual: pages exist once they are written.
size_t choose_ring_bytes(uint32_t size) {
  size_t fair = (size_t{16} << 30) / (size_t{size} * size);
  return round_up(std::clamp(fair, size_t{16} << 20, size_t{1} << 30));
}

std::string describe_operation(const Operation &operation) {
  std::string text = std::string(operation.name) + " of " + std::to_string(operation.count) + " " + dtype_name(operation.dtype);
  if (operation.reduction >= 0) text += ", reduction " + std::to_string(operation.reduction);
  if (operation.root >= 0) text += ", root " + std::to_string(operation.root);
  return text;
}

}  // namespace

void Group::map(int fd) {
  fd_ = fd;
  ring_bytes_ = choose_ring_bytes(size_);
  size_t header_bytes = round_up(sizeof(Header));
  size_t slots_bytes = 2 * (size_ + 1) * kChunkBytes;
  total_bytes_ = header_bytes + slots_bytes + size_ * size_ * ring_bytes_;
  if (ftruncate(fd, static_cast<off_t>(total_bytes_))) throw Error(std::string("shared memory: ") + strerror(errno));
  void *base = mmap(nullptr, total_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) throw Error(std::string("shared memory: ") + strerror(errno));
  header_ = static_cast<Header *>(base);  // a new memfd is zero
  slots_ = static_cast<char *>(base) + header_bytes;
  rings_ = slots_ + slots_bytes;
}

void Group::lock_own_byte() const {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_start = rank_;
  lock.l_len = 1;
  if (fcntl(fd_, F_SETLK, &lock)) throw Error("rank " + std::to_string(rank_) + " is already registered in " + label_);
}

bool Group::is_alive(uint32_t rank) const {
  if (rank == rank_) return true;
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_start = rank;
  lock.l_len = 1;
  return fcntl(fd_, F_GETLK, &lock) || lock.l_type != F_UNLCK;
}

void Group::check_rank(uint32_t rank, const std::string &what) const {
  if (is_alive(rank)) return;
  throw Error("rank " + std::to_string(rank) + " of " + label_ + " has exited; rank " + std::to_string(rank_) +
              " waited for it in " + what);
}

std::string Group::describe_missing() const {
  std::string text;
  for (uint32_t r = 0; r < size_; r++) {
    if (header_->num_rounds[r] < round_) text += (text.empty() ? "" : ", ") + std::to_string(r);
  }
  return text;
}

// `word` changes whenever is_ready() may have become true.
template <class P>
void Group::wait_on(std::atomic<uint32_t> &word, P is_ready, uint32_t awaited, const std::string &what) {
  using namespace std::chrono;
  static const int limit_s = read_seconds("HCCL_EXEC_TIMEOUT", 1836);
  auto deadline = steady_clock::now() + seconds(limit_s);
  while (true) {
    uint32_t seen = word.load();
    if (is_ready()) return;
    futex_wait(word, seen);
    if (is_ready()) return;
    if (word.load() != seen) continue;
    if (awaited != kEveryRank) check_rank(awaited, what);
    else
      for (uint32_t r = 0; r < size_; r++) check_rank(r, what);
    if (steady_clock::now() < deadline) continue;
    std::string missing = awaited == kEveryRank ? describe_missing() : std::to_string(awaited);
    throw Error("rank " + std::to_string(rank_) + " of " + label_ + " waited " + std::to_string(limit_s) + " s for rank " +
                missing + " in " + what + " (HCCL_EXEC_TIMEOUT sets the limit)");
  }
}

void Group::start_round(const Operation &operation) {
  parity_ = static_cast<uint32_t>(round_++ % 2);
  header_->num_rounds[rank_] = round_;
  header_->operations[parity_][rank_] = operation;
}

void Group::wait_for_all(const char *what) {
  if (size_ == 1) return;
  uint32_t generation = header_->generation.load();
  if (header_->num_arrived.fetch_add(1) + 1 == size_) {
    header_->num_arrived = 0;
    header_->generation.fetch_add(1);
    futex_wake(header_->generation);
    return;
  }
  wait_on(header_->generation, [&] { return header_->generation.load() != generation; }, kEveryRank, what);
}

void Group::compare_operations(const Operation &own) const {
  for (uint32_t r = 0; r < size_; r++) {
    const Operation &other = header_->operations[parity_][r];
    bool same = !std::strncmp(own.name, other.name, sizeof own.name) && own.count == other.count &&
                own.dtype == other.dtype && own.reduction == other.reduction && own.root == other.root;
    if (same) continue;
    throw Error("ranks of " + label_ + " disagree: rank " + std::to_string(rank_) + " is at " + describe_operation(own) +
                ", rank " + std::to_string(r) + " at " + describe_operation(other));
  }
}

void Group::put(uint32_t to, const char *data, size_t bytes) {
  RingHeader &state = ring(rank_, to);
  char *place = ring_data(rank_, to);
  while (bytes) {
    uint64_t written = state.written.load();
    auto has_room = [&] { return written - state.read.load() < ring_bytes_; };
    wait_on(state.read_signal, has_room, to, "Send");
    size_t offset = written % ring_bytes_;
    size_t part = std::min({bytes, static_cast<size_t>(ring_bytes_ - (written - state.read.load())), ring_bytes_ - offset});
    std::memcpy(place + offset, data, part);
    state.written = written + part;
    state.write_signal.fetch_add(1);
    futex_wake(state.write_signal);
    data += part;
    bytes -= part;
  }
}

void Group::take(uint32_t from, char *data, size_t bytes) {
  RingHeader &state = ring(from, rank_);
  char *place = ring_data(from, rank_);
  while (bytes) {
    uint64_t read = state.read.load();
    wait_on(state.write_signal, [&] { return state.written.load() > read; }, from, "Recv");
    size_t offset = read % ring_bytes_;
    size_t part = std::min({bytes, static_cast<size_t>(state.written.load() - read), ring_bytes_ - offset});
    std::memcpy(data, place + offset, part);
    if (part >= kPunchBytes) {
      // Before the sender may write there again.
      auto start = static_cast<off_t>(round_up(static_cast<size_t>(place + offset - reinterpret_cast<char *>(header_))));
      auto end = static_cast<off_t>(place + offset + part - reinterpret_cast<char *>(header_)) / off_t{kPageBytes} * off_t{kPageBytes};
      fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, end - start);
    }
    state.read = read + part;
    state.read_signal.fetch_add(1);
    futex_wake(state.read_signal);
    data += part;
    bytes -= part;
  }
}

void Group::send(uint32_t to, const void *data, size_t bytes) {
  if (to >= size_) throw Error("no rank " + std::to_string(to) + " in " + label_);
  std::lock_guard<std::mutex> guard(send_locks_[to]);
  uint64_t length = bytes;
  put(to, reinterpret_cast<const char *>(&length), sizeof length);
  put(to, static_cast<const char *>(data), bytes);
}

void Group::receive(uint32_t from, void *data, size_t bytes) {
  if (from >= size_) throw Error("no rank " + std::to_string(from) + " in " + label_);
  std::lock_guard<std::mutex> guard(receive_locks_[from]);
  uint64_t length;
  take(from, reinterpret_cast<char *>(&length), sizeof length);
  if (length != bytes) {
    throw Error("rank " + std::to_string(from) + " of " + label_ + " sent " + std::to_string(length) + " bytes, but rank " +
                std::to_string(rank_) + " expected " + std::to_string(bytes));
  }
  take(from, static_cast<char *>(data), bytes);
}

}  // namespace softnpu
