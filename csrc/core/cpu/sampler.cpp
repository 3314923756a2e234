// The frames of a session: its memory, what it reads, and each mask step from order and noise to tokens.
// sampler_weights.cpp packs the weights; the transformers are kernels, sampler_kernels.h.
#include "core/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/cpu/allocator.h"
#include "core/cpu/vector_kernels.h"
#include "core/philox.h"

namespace enma {

namespace {

// Rows of a product that one thread carries at a time, if it carries whole members: activations stay in its
// second-level cache, and weights pass through it once for all of them.
constexpr int ROWS_AT_A_TIME = 128;
// Tokens of a flow-matching head's call.
constexpr int FLOW_ROWS = 64;
// Mask step of the words that order tokens; enma_fast/sampling/noise.py.
constexpr std::uint32_t ORDER_STEP = 0xFFFFFFFFu;

// Pieces of at most `most` of `count` things; where each thread gets few of them, all get as many.
int even_items(int count, int most, int threads) {
    const int items = (count + most - 1) / most;
    return items < 4 * threads ? std::min(count, (items + threads - 1) / threads * threads) : items;
}

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

}  // namespace

// Things that the threads of one parallel region have in common.
struct SamplerSession::Region {
    Member member;
    char* shared;
    char* own;
    const Kernels& run;
};

SamplerSession::SamplerSession(const Sampler& sampler, SamplerSettings settings)
    : model_(&sampler.view()),
      weight_bytes_(sampler.bytes()),
      settings_(std::move(settings)),
      group_(settings_.rows),
      seeds_(settings_.rows),
      members_(settings_.rows),
      counters_(2 * settings_.counts.size() + 2) {
    const SamplerView& m = *model_;
    const SamplerSettings& set = settings_;
    const int N = m.tokens, C = m.channels;
    // Tokens of a mask step, and of a draw of noise.
    const int most = set.counts.empty() ? 0 : *std::max_element(set.counts.begin(), set.counts.end());
    const int drawn = m.one_pass ? N : most;
    const bool halves = is_half(m.format) && kernels(set.isa).halves;
    const std::size_t input = halves ? 2 : 4, ld = row_stride(m.width), B = set.rows, G = set.groups;
    state_.group = group_.data();
    state_.attention = &vector_kernels(set.isa).frame_attention;

    const auto cache = [&](Allocator& memory, std::size_t rows, std::size_t frames) {
        const std::ptrdiff_t value = static_cast<std::ptrdiff_t>(frames * N * ld);
        const std::ptrdiff_t layer = static_cast<std::ptrdiff_t>(rows) * 2 * value;
        return KeyValues{memory.take<char>(m.causal_layers * layer * input), layer, 2 * value, value,
                         static_cast<std::ptrdiff_t>(ld)};
    };
    const auto caches = [&](char* to) {
        Allocator memory(to);
        state_.prefix = cache(memory, G, set.prefix_frames);
        state_.own = cache(memory, B, set.own_frames);
        return memory.used();
    };
    const auto buffers = [&](char* to) {
        Allocator memory(to);
        state_.group_h = memory.take<float>(G * N * ld);
        state_.anchor = memory.take<float>(G * N * ld);
        state_.opening = memory.take<float>(N * ld);
        state_.h = memory.take<float>(set.own_frames == 0 ? 0 : B * N * ld);
        state_.tokens = memory.take<float>(B * N * C);
        const int columns = std::max(m.local == nullptr ? 0 : m.read.n, m.first == nullptr ? 0 : m.first_read.n);
        state_.features = memory.take<float>(B * N * columns);
        state_.start = memory.take<float>(m.first == nullptr ? 0 : B * NOISE_PAST * N * C);
        const std::size_t past = m.local == nullptr ? 0 : m.local->past;
        state_.group_past = memory.take<float>(G * past * N * C);
        state_.past = memory.take<float>(B * past * N * C);
        state_.order = memory.take<int>(B * N);
        state_.input = memory.take<float>(B * m.masked_rows * ld);
        state_.first_qkv = memory.take<char>(most == 0 ? 0 : B * m.masked_rows * 3 * ld * input);
        state_.condition = memory.take<char>(B * most * m.width * input);
        state_.context = memory.take<float>(m.concat ? 0 : B * N * ld);
        state_.noise = memory.take<float>(B * drawn * C);
        state_.drawn = memory.take<float>(B * most * C);
        state_.means = memory.take<float>(m.residual ? B * most * row_stride(C) : 0);
        state_.scales = memory.take<float>(m.residual ? B * most * row_stride(C) : 0);
        return memory.used();
    };
    keys_values_bytes_ = caches(nullptr);
    keys_values_ = Buffer(keys_values_bytes_);
    caches(keys_values_.data());
    buffer_bytes_ = buffers(nullptr);
    buffers_ = Buffer(buffer_bytes_);
    buffers(buffers_.data());

    // Each thread takes members of its own where there are enough of them to keep all threads busy.
    solo_ = set.threads == 1 || set.teams == Teams::each ||
            (set.teams == Teams::automatic && (set.rows >= 4 * set.threads || set.rows % set.threads == 0));
    const int threads = solo_ ? set.threads : 1;
    const auto at_a_time = [&](int rows_each) {
        const int even = (set.rows + threads - 1) / threads;
        return std::clamp(ROWS_AT_A_TIME / rows_each, 1, std::max(even, 1));
    };
    item_members_ = at_a_time(m.masked_rows);
    causal_members_ = at_a_time(N);
    const std::size_t rows = std::max(item_members_ * m.masked_rows, causal_members_ * N);
    const std::size_t ldh = row_stride(m.hidden);
    shared_bytes_ = pages(rows * ld * 8 + rows * (4 * ld + ldh) * 4 + 6 * 64);
    const std::int64_t keys = std::int64_t{set.prefix_frames + set.own_frames + 1} * N;
    const std::size_t work = frame_attention_work(std::max(keys, std::int64_t{m.masked_rows}));
    own_bytes_ = GEMM_SCRATCH + sizeof(float) * (GEMM_ROWS * (m.head_columns + SAMPLER_COLUMNS) +
                                                 2 * (rows + GEMM_ROWS) * m.input_stride + work);
    for (const FlowHead* head : set.heads) {
        own_bytes_ = std::max(own_bytes_, flow_head_own_bytes(head->view(), FLOW_ROWS));
        shared_bytes_ = std::max(shared_bytes_, flow_head_shared_bytes(head->view(), FLOW_HEAD_TOGETHER));
    }
    for (const LocalHeadView* head : {m.local, m.first}) {
        if (head == nullptr) continue;
        own_bytes_ = std::max(own_bytes_, local_head_own_bytes(*head));
        shared_bytes_ = std::max(shared_bytes_, pages(local_head_shared_bytes(*head)));
    }
    own_bytes_ = pages(own_bytes_ + 8 * 64);
    // A thread with members of its own needs what a team shares for itself.
    thread_bytes_ = own_bytes_ + (solo_ ? shared_bytes_ : 0);
    work_ = Buffer(shared_bytes_ + set.threads * thread_bytes_);
    keys_.resize(static_cast<std::size_t>(set.threads) * N);
}

void SamplerSession::reset() {
    state_.prefix_frames = state_.own_frames = 0;
    frame_ = 0;
    begun_ = false;
}

void SamplerSession::read_frame(bool shared, int start, const float* tokens) {
    const Kernels& run = kernels(settings_.isa);
    const int rows = shared ? settings_.groups : settings_.rows;
    float* to = !shared ? state_.h : start >= 0 ? state_.anchor : state_.group_h;
    Barrier barrier;
    parallel(settings_.threads, [&](int thread, int threads) {
        char* own = work_.data() + shared_bytes_ + thread * thread_bytes_;
        const Member member{thread, threads, &barrier};
        for (int begin = 0; begin < rows; begin += causal_members_) {
            const CausalTask task{begin, std::min(begin + causal_members_, rows), shared, start, tokens, to};
            run.causal_frame(*model_, state_, task, member, work_.data(), own);
        }
    });
}

void SamplerSession::start_segment(int segment) {
    const std::size_t start = static_cast<std::size_t>(model_->tokens) * row_stride(model_->width);
    const std::size_t groups = settings_.groups;
    // A segment that nothing precedes begins alike in all groups and every time; its keys and values stay.
    const bool first = state_.prefix_frames == 0;
    if (first && segment == opening_) {
        for (std::size_t g = 0; g < groups; ++g) std::copy_n(state_.opening, start, state_.anchor + g * start);
    } else {
        read_frame(true, segment, nullptr);
        if (first) {
            std::copy_n(state_.anchor, start, state_.opening);
            opening_ = segment;
        }
    }
    std::copy_n(state_.anchor, groups * start, state_.group_h);
    std::fill_n(state_.group_past, groups * past_size(), 0.0f);
    ++state_.prefix_frames;
}

void SamplerSession::read(const float* tokens) {
    read_frame(true, -1, tokens);
    for (int g = 0; g < settings_.groups; ++g) remember(state_.group_past, tokens, g);
    ++state_.prefix_frames;
}

std::size_t SamplerSession::past_size() const {
    if (model_->local == nullptr) return 0;
    return static_cast<std::size_t>(model_->local->past) * model_->tokens * model_->channels;
}

// A row's newest frame takes the place of its oldest one before the next frame.
void SamplerSession::remember(float* past, const float* tokens, int row) const {
    if (model_->local == nullptr) return;
    const std::size_t frame = static_cast<std::size_t>(model_->tokens) * model_->channels, P = model_->local->past;
    float* frames = past + row * past_size();
    std::memmove(frames, frames + frame, (P - 1) * frame * sizeof(float));
    std::memcpy(frames + (P - 1) * frame, tokens + row * frame, frame * sizeof(float));
}

void SamplerSession::follow(const float* tokens) {
    read_frame(false, -1, tokens);
    for (int row = 0; row < settings_.rows; ++row) remember(state_.past, tokens, row);
    ++frame_;
    ++state_.own_frames;
}

void SamplerSession::keep(const int* rows, int count) {
    const SamplerView& m = *model_;
    const std::size_t frame = sizeof(float) * m.tokens * row_stride(m.width);
    const std::size_t input = is_half(m.format) && kernels(settings_.isa).halves ? 2 : 4;
    const std::size_t known = static_cast<std::size_t>(state_.own_frames) * m.tokens * state_.own.token * input;
    const std::size_t past = past_size();
    for (int i = 0; i < count; ++i) {
        const int row = rows[i];
        if (row == i) continue;
        group_[i] = group_[row];
        seeds_[i] = seeds_[row];
        members_[i] = members_[row];
        if (past > 0) std::memcpy(state_.past + i * past, state_.past + row * past, past * sizeof(float));
        if (state_.own_frames == 0) continue;
        char* h = reinterpret_cast<char*>(state_.h);
        std::memcpy(h + i * frame, h + row * frame, frame);
        for (int part = 0; part < 2 * m.causal_layers; ++part) {
            char* from = state_.own.data + (part / 2 * state_.own.layer + part % 2 * state_.own.value) * input;
            std::memcpy(from + i * state_.own.row * input, from + row * state_.own.row * input, known);
        }
    }
    settings_.rows = count;
}

void SamplerSession::begin(const std::uint32_t* seeds, const std::uint32_t* members, const int* groups,
                           int first_frame) {
    std::copy_n(seeds, settings_.rows, seeds_.data());
    std::copy_n(members, settings_.rows, members_.data());
    std::copy_n(groups, settings_.rows, group_.data());
    const std::size_t past = past_size();
    for (int row = 0; past > 0 && row < settings_.rows; ++row) {
        std::copy_n(state_.group_past + group_[row] * past, past, state_.past + row * past);
    }
    state_.own_frames = 0;
    frame_ = first_frame;
    begun_ = true;
}

void SamplerSession::order_row(int row, std::uint64_t* keys) {
    const int N = model_->tokens;
    for (int n = 0; n < N; ++n) {
        const PhiloxWords counter{0, static_cast<std::uint32_t>(n), ORDER_STEP, static_cast<std::uint32_t>(frame_)};
        const std::uint64_t word = philox_4x32(counter, seeds_[row], members_[row]).w0;
        // Equal words stay in the order of their index.
        keys[n] = word << 32 | static_cast<std::uint32_t>(n);
    }
    std::sort(keys, keys + N);
    for (int n = 0; n < N; ++n) state_.order[row * N + n] = static_cast<int>(keys[n] & 0xFFFFFFFFu);
}

// All tokens of a row, in their own order, and their noise, which is what frame 0 is made from.
void SamplerSession::begin_pass(int row) {
    const int N = model_->tokens;
    std::iota(state_.order + row * N, state_.order + (row + 1) * N, 0);
    draw_noise(row, 0, 0, N);
    if (frame_ > 0) return;
    const std::ptrdiff_t frame = static_cast<std::ptrdiff_t>(N) * model_->channels;
    float* start = state_.start + row * NOISE_PAST * frame;
    std::copy_n(state_.noise + row * frame, frame, start);
    std::fill_n(start + frame, frame, 0.0f);
}

void SamplerSession::draw_noise(int row, int step, int done, int count) {
    const int N = model_->tokens, C = model_->channels;
    // Frame 0 of a one-pass model is a draw from its own distribution, whatever the later frames' noise.
    const float temperature = model_->one_pass && frame_ == 0 ? 1.0f : settings_.temperature;
    for (int i = 0; i < count; ++i) {
        const int token = state_.order[row * N + done + i];
        const PhiloxWords counter{0, static_cast<std::uint32_t>(token), static_cast<std::uint32_t>(step),
                                  static_cast<std::uint32_t>(frame_)};
        float* out = state_.noise + (static_cast<std::ptrdiff_t>(row) * count + i) * C;
        philox_token_normals(counter, seeds_[row], members_[row], C, out);
        for (int c = 0; c < C; ++c) out[c] *= temperature;
    }
}

// Tokens from what the flow made of the noise of conditions [begin, end).
void SamplerSession::decide_rows(int begin, int end, int done, int count) {
    const int N = model_->tokens, C = model_->channels;
    const float shift = std::log(std::exp(1.0f) - 1.0f);
    const std::ptrdiff_t ldc = row_stride(C);
    for (int i = begin; i < end; ++i) {
        const int row = i / count, token = state_.order[row * N + done + i % count];
        float* to = state_.tokens + (static_cast<std::ptrdiff_t>(row) * N + token) * C;
        for (int c = 0; c < C; ++c) {
            float z = state_.drawn[static_cast<std::ptrdiff_t>(i) * C + c];
            if (model_->residual) {
                const float scale = softplus(state_.scales[i * ldc + c] + shift) + 1e-3f;
                z = state_.means[i * ldc + c] + scale * z;
            }
            to[c] = z;
        }
    }
}

// The flow-matching head for the tokens of a mask step, whatever rows they belong to.
void SamplerSession::decide(const Region& region, int step, int done, int count) {
    const FlowHeadView& head = settings_.heads[step]->view();
    const int total = settings_.rows * count;
    const FlowHeadCall call{state_.condition,
                            is_half(model_->format) && region.run.halves ? NumberFormat::bf16 : NumberFormat::fp32,
                            state_.noise, state_.drawn, total};
    const Member& member = region.member;
    if (flow_head_shares_columns(head, total, member.threads)) {
        const int begin = static_cast<int>(std::int64_t{settings_.rows} * member.thread / member.threads);
        const int end = static_cast<int>(std::int64_t{settings_.rows} * (member.thread + 1) / member.threads);
        for (int row = begin; row < end; ++row) draw_noise(row, step, done, count);
        wait(member);
        for (int row = 0; row < total; row += FLOW_HEAD_TOGETHER) {
            region.run.flow_head_columns(head, call, row, std::min(FLOW_HEAD_TOGETHER, total - row), member,
                                         region.shared, region.own);
        }
        if (model_->residual && begin < end)
            region.run.moments(*model_, state_, begin * count, end * count, region.own);
        decide_rows(begin * count, end * count, done, count);
        return;
    }
    // Whole members at a time, so that their noise is drawn once.
    const int items = even_items(settings_.rows, std::max(1, FLOW_ROWS / count), member.threads);
    std::atomic<int>& next = counters_[2 * step + 1];
    for (int item = next++; item < items; item = next++) {
        const int first = static_cast<int>(std::int64_t{settings_.rows} * item / items);
        const int last = static_cast<int>(std::int64_t{settings_.rows} * (item + 1) / items);
        for (int row = first; row < last; ++row) draw_noise(row, step, done, count);
        for (int row = first * count; row < last * count; row += FLOW_ROWS) {
            region.run.flow_head_rows(head, call, row, std::min(FLOW_ROWS, last * count - row), region.own);
        }
        if (model_->residual) region.run.moments(*model_, state_, first * count, last * count, region.own);
        decide_rows(first * count, last * count, done, count);
    }
}

void SamplerSession::frame(float* out, bool last) {
    const Kernels& run = kernels(settings_.isa);
    const SamplerView& m = *model_;
    const int rows = settings_.rows, steps = static_cast<int>(settings_.counts.size());
    const bool first = frame_ == 0, one_pass = m.one_pass && (!first || m.first != nullptr);
    const LocalHeadView* const head = first ? m.first : m.local;
    const LinearView& read = first ? m.first_read : m.read;
    const float* const past = first ? state_.start : state_.past;
    float* const made = head == nullptr ? state_.tokens : state_.features;
    for (std::atomic<int>& counter : counters_) counter.store(0, std::memory_order_relaxed);
    Barrier barrier;
    parallel(settings_.threads, [&](int thread, int threads) {
        char* own = work_.data() + shared_bytes_ + thread * thread_bytes_;
        const Region region{{thread, threads, &barrier}, work_.data(), own, run};
        const int first_row = static_cast<int>(std::int64_t{rows} * thread / threads);
        const int end_row = static_cast<int>(std::int64_t{rows} * (thread + 1) / threads);
        const Member team = solo_ ? Member{0, 1, &barrier} : region.member;
        char* shared = solo_ ? own + own_bytes_ : work_.data();
        // Items of `each` members: claimed one by one by threads with members of their own, else all of them by all.
        const auto share_out = [&](std::atomic<int>& next, int each, const auto& body) {
            const int items = even_items(rows, each, solo_ ? threads : 1);
            int item = solo_ ? next++ : 0;
            while (item < items) {
                body(static_cast<int>(std::int64_t{rows} * item / items),
                     static_cast<int>(std::int64_t{rows} * (item + 1) / items));
                item = solo_ ? next++ : item + 1;
            }
        };
        for (int row = first_row; row < end_row; ++row) {
            if (one_pass) {
                begin_pass(row);
            } else {
                order_row(row, keys_.data() + static_cast<std::ptrdiff_t>(thread) * m.tokens);
            }
        }
        wait(region.member);
        if (one_pass) {
            share_out(counters_[2 * steps + 1], item_members_, [&](int begin, int end) {
                const MaskTask task{begin, end, 0, first, 0, 0, m.tokens, true, &read, made};
                run.mask_step(m, state_, task, team, shared, own);
                for (int row = begin; head != nullptr && row < end; ++row) {
                    const std::ptrdiff_t tokens = static_cast<std::ptrdiff_t>(row) * m.tokens;
                    local_head(*head, settings_.isa, made + tokens * read.n, past + tokens * head->past * m.channels,
                               state_.tokens + tokens * m.channels, team, shared, own);
                }
            });
            wait(region.member);
        }
        int done = 0;
        for (int step = 0; step < (one_pass ? 0 : steps); ++step) {
            const int count = settings_.counts[step];
            share_out(counters_[2 * step], item_members_, [&](int begin, int end) {
                const int previous = step == 0 ? 0 : settings_.counts[step - 1];
                const MaskTask task{begin, end, step, first, done, previous, count, false, nullptr, nullptr};
                run.mask_step(m, state_, task, team, shared, own);
            });
            wait(region.member);
            decide(region, step, done, count);
            wait(region.member);
            done += count;
        }
        if (last) return;
        for (int row = first_row; row < end_row; ++row) {
            remember(state_.past, state_.tokens, row);
        }
        share_out(counters_[2 * steps], causal_members_, [&](int begin, int end) {
            const CausalTask task{begin, end, false, -1, state_.tokens, state_.h};
            run.causal_frame(m, state_, task, team, shared, own);
        });
    });
    std::memcpy(out, state_.tokens, sizeof(float) * rows * m.tokens * m.channels);
    ++frame_;
    begun_ = !last;
    if (!last) ++state_.own_frames;
}

SamplerPlan SamplerSession::plan() const {
    std::size_t heads = 0;
    for (std::size_t i = 0; i < settings_.heads.size(); ++i) {
        const auto end = settings_.heads.begin() + static_cast<std::ptrdiff_t>(i);
        if (std::find(settings_.heads.begin(), end, settings_.heads[i]) == end) heads += settings_.heads[i]->bytes();
    }
    return {weight_bytes_ + heads, keys_values_bytes_, buffer_bytes_, work_.size()};
}

}  // namespace enma
