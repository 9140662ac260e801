/* From the facts of a call to the kernel that serves it, and what to say where none does. */
#ifndef GRISTMILL_SELECT_H
#define GRISTMILL_SELECT_H

#include "place.h"

#define GM_NONE_FOUND UINT32_MAX

/* The first of the groups that have this key, or of those after it. */
GM_FUNCTION uint32_t gm_lower_bound(const gm_entry *entry, uint64_t key) {
    uint32_t first = 0, count = entry->group_count;
    while (count) {
        const uint32_t half = count / 2;
        if (entry->groups[first + half].key < key) {
            first += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return first;
}

/* The number of the first variant of a group of which every condition holds. */
GM_FUNCTION uint32_t gm_match(const gm_call *call, const gm_group *group) {
    const uint32_t words = call->entry->words;
    const uint64_t *need = call->entry->needs + (size_t)group->first * words;
    uint32_t i, word;
    for (i = 0; i < group->count; i++, need += words) {
        uint64_t missing = 0;
        for (word = 0; word < words; word++) missing |= need[word] & ~call->facts[word];
        if (!missing) return group->first + i;
    }
    return GM_NONE_FOUND;
}

GM_FUNCTION uint32_t gm_search(const gm_call *call, uint64_t key, int32_t warps, int32_t stages) {
    const gm_entry *entry = call->entry;
    uint32_t at;
    for (at = gm_lower_bound(entry, key); at < entry->group_count; at++) {
        const gm_group *group = &entry->groups[at];
        uint32_t found;
        if (group->key != key) break;
        if ((warps && warps != group->num_warps) || (stages && stages != group->num_stages)) {
            continue;
        }
        found = gm_match(call, group);
        if (found != GM_NONE_FOUND) return entry->kernels[found];
    }
    return GM_NONE_FOUND;
}

/* The first tuned choice that a call meets. Bits of `free` are the choice's to decide. */
GM_FUNCTION uint32_t gm_find_choice(const gm_call *call, uint64_t key, uint64_t free_bits) {
    uint32_t i, at;
    for (i = 0; i < call->entry->choice_count; i++) {
        const gm_choice *choice = &call->entry->choices[i];
        if ((choice->key ^ key) & choice->mask & ~free_bits) continue;
        if (call->num_warps && call->num_warps != choice->num_warps) continue;
        if (call->num_stages && call->num_stages != choice->num_stages) continue;
        for (at = 0; at < choice->limit_count; at++) {
            const int64_t value = (int64_t)call->values[choice->limits[at].parameter];
            if (value < choice->limits[at].smallest || value > choice->limits[at].largest) break;
        }
        if (at == choice->limit_count) return i;
    }
    return GM_NONE_FOUND;
}

/* The kernel for a call at a place: its number in the artifact. */
GM_FUNCTION uint32_t gm_select(const gm_call *call, const gm_place *place) {
    const gm_entry *entry = call->entry;
    uint32_t i, found;
    for (i = 0; i < place->arch_count; i++) {
        const uint64_t key = call->key | (uint64_t)place->archs[i] << entry->arch_shift;
        if (entry->choice_count && !(call->num_warps && call->num_stages)) {
            const uint32_t chosen = gm_find_choice(call, key, 0);
            if (chosen != GM_NONE_FOUND) {
                const gm_choice *choice = &entry->choices[chosen];
                found = gm_search(call, key, choice->num_warps, choice->num_stages);
                if (found != GM_NONE_FOUND) return found;
            }
        }
        found = gm_search(call, key, call->num_warps, call->num_stages);
        if (GM_LIKELY(found != GM_NONE_FOUND)) return found;
    }
    return GM_NONE_FOUND;
}

GM_COLD uint64_t gm_field_of(const gm_field *field, uint64_t key) {
    return key >> field->shift & (((uint64_t)1 << field->bits) - 1);
}

GM_COLD int gm_runs_here(const gm_place *place, uint64_t arch) {
    uint32_t i;
    for (i = 0; i < place->arch_count; i++) {
        if (place->archs[i] == arch) return 1;
    }
    return 0;
}

/* How far a variant is from a call: by architecture, types and constexprs, warps, conditions. */
GM_COLD uint64_t gm_distance(const gm_call *call, const gm_place *place, const gm_group *group,
                             uint32_t variant) {
    const gm_entry *entry = call->entry;
    const uint64_t *need = entry->needs + (size_t)variant * entry->words;
    uint64_t distance = gm_runs_here(place, group->key >> entry->arch_shift) ? 0 : 1u << 30;
    uint32_t i;
    for (i = 0; i < entry->field_count; i++) {
        const gm_field *field = &entry->fields[i];
        distance += (uint64_t)(gm_field_of(field, group->key) != gm_field_of(field, call->key))
                    << 20;
    }
    distance += (uint64_t)(call->num_warps && call->num_warps != group->num_warps) << 10;
    distance += (uint64_t)(call->num_stages && call->num_stages != group->num_stages) << 10;
    for (i = 0; i < entry->words; i++) {
        distance += (uint64_t)__builtin_popcountll(need[i] & ~call->facts[i]);
    }
    return distance;
}

GM_COLD void gm_say_condition(gm_message *message, const gm_artifact *artifact,
                              const gm_call *call, const gm_condition *condition) {
    const char *name = call->entry->parameters[condition->parameter];
    const uint64_t value = call->values[condition->parameter];
    switch (condition->fact) {
    case GM_IS_NULL:
        gm_say(message, "`%s` to be null; it is 0x%" PRIx64, name, value);
        break;
    case GM_NOT_NULL:
        gm_say(message, "`%s` not to be null", name);
        break;
    case GM_DIVISIBLE:
        gm_say(message, "`%s` to be at a multiple of 16 bytes; it is 0x%" PRIx64, name, value);
        break;
    case GM_MULTIPLE:
        gm_say(message, "`%s` to be a multiple of 16; it is %" PRId64, name, (int64_t)value);
        break;
    case GM_IS_ONE:
        gm_say(message, "`%s` to be 1; it is %" PRId64, name, (int64_t)value);
        break;
    default:
        gm_say(message, "`%s` to fit %s; it is %" PRId64, name,
               artifact->elements[condition->type], (int64_t)value);
    }
}

/* What a call has for a field. */
GM_COLD void gm_say_value(gm_message *message, const gm_artifact *artifact, const gm_call *call,
                          const gm_field *field) {
    const uint64_t value = field->kind == GM_TYPE_VARIABLE
                               ? (uint64_t)(int64_t)call->types[field->index]
                               : call->values[field->index];
    double number;
    if (field->kind == GM_TYPE_VARIABLE || field->kind == GM_TYPE) {
        if (value < artifact->element_count) {
            gm_say(message, "%s", artifact->elements[value]);
        } else {
            gm_say(message, "no type (code %" PRId64 ")", (int64_t)value);
        }
    } else if (field->kind == GM_TEXT) {
        const char *text = (const char *)(uintptr_t)value;
        gm_say(message, text ? "'%.64s'" : "%s", text ? text : "None");
    } else if (field->kind == GM_FLOAT) {
        memcpy(&number, &value, sizeof number);
        gm_say(message, "%.17g", number);
    } else {
        gm_say(message, "%" PRId64, (int64_t)value);
    }
}

/* Says the first condition of a variant that a call does not meet. */
GM_COLD void gm_say_difference(gm_message *message, const gm_artifact *artifact,
                               const gm_call *call, const gm_place *place, const gm_group *group,
                               uint32_t variant) {
    const gm_entry *entry = call->entry;
    const uint64_t *need = entry->needs + (size_t)variant * entry->words;
    const uint64_t arch = group->key >> entry->arch_shift;
    uint32_t i;
    if (!gm_runs_here(place, arch)) {
        gm_say(message, "a device of architecture %s; the current one is %s",
               artifact->archs[arch].name, place->arch_name);
        return;
    }
    for (i = 0; i < entry->field_count; i++) {
        const gm_field *field = &entry->fields[i];
        const uint64_t value = gm_field_of(field, group->key);
        if (value == gm_field_of(field, call->key)) continue;
        gm_say(message, "`%s`", field->name);
        if (field->of) gm_say(message, ", the type of %s,", field->of);
        gm_say(message, " to be %s; it is ", field->values[value]);
        gm_say_value(message, artifact, call, field);
        return;
    }
    if (call->num_warps && call->num_warps != group->num_warps) {
        gm_say(message, "`num_warps` to be %" PRId32 "; it is %" PRId32, group->num_warps,
               call->num_warps);
        return;
    }
    if (call->num_stages && call->num_stages != group->num_stages) {
        gm_say(message, "`num_stages` to be %" PRId32 "; it is %" PRId32, group->num_stages,
               call->num_stages);
        return;
    }
    for (i = 0; i < entry->condition_count; i++) {
        if (need[i / 64] & ~call->facts[i / 64] & (uint64_t)1 << i % 64) {
            gm_say_condition(message, artifact, call, &entry->conditions[i]);
            return;
        }
    }
}

/* The tuned choice for a call of which choices decide `free_bits`. */
GM_COLD int32_t gm_choose(gm_artifact *artifact, const gm_call *call, uint64_t free_bits,
                          uint32_t *chosen) {
    gm_place *place = NULL;
    uint32_t i;
    int32_t status = gm_find_place(artifact, call->entry->name, &place);
    if (status) return status;
    for (i = 0; i < place->arch_count; i++) {
        const uint64_t arch = (uint64_t)place->archs[i] << call->entry->arch_shift;
        *chosen = gm_find_choice(call, call->key | arch, free_bits);
        if (*chosen != GM_NONE_FOUND) return GRISTMILL_OK;
    }
    return gm_fail(GRISTMILL_NO_SPECIALISATION, call->entry->name,
                   "no tuned choice is for this call on %s. Call the function that takes the "
                   "constexprs and a grid.", place->arch_name);
}

/* Takes part in a type variable: its type is that of all its tensors. Null may have none. */
GM_FUNCTION int gm_agree(int32_t *type, int32_t dtype, int null) {
    if (null && dtype == GRISTMILL_NONE) return 1;
    if (*type == GRISTMILL_NONE) *type = dtype;
    return *type == dtype;
}

GM_COLD const char *gm_element_name(const gm_artifact *artifact, int32_t dtype) {
    return dtype >= 0 && dtype < (int32_t)artifact->element_count ? artifact->elements[dtype]
                                                                  : "unknown";
}

/* A descriptor of another type than its parameter's. */
GM_COLD int32_t gm_wrong_element(const gm_artifact *artifact, const char *who,
                                 const char *parameter, int32_t dtype, int32_t expected) {
    return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                   "`%s` has type %s (code %" PRId32 "); by its declaration it must be %s",
                   parameter, gm_element_name(artifact, dtype), dtype,
                   gm_element_name(artifact, expected));
}

/* An argument that takes part in a type variable. */
typedef struct gm_typed {
    const char *parameter;
    int32_t dtype;
    int absent; /* a null pointer without a type */
} gm_typed;

GM_COLD int gm_is_compiled(const gm_artifact *artifact, const gm_entry *entry, uint32_t variable,
                           int32_t dtype) {
    uint32_t i, value;
    for (i = 0; i < entry->field_count; i++) {
        const gm_field *field = &entry->fields[i];
        if (field->kind != GM_TYPE_VARIABLE || field->index != variable) continue;
        for (value = 0; value < field->count; value++) {
            if (strcmp(field->values[value], gm_element_name(artifact, dtype)) == 0) return 1;
        }
    }
    return 0;
}

/* Arguments of one type variable have several types. To blame is who has another one than most
   have, of the types that were compiled if there is one; where that is nobody, both are named. */
GM_COLD int32_t gm_mixed(const gm_artifact *artifact, const gm_entry *entry, const char *who,
                         uint32_t variable, const gm_typed *given, uint32_t count) {
    const gm_typed *most = NULL, *other = NULL;
    uint32_t i, at, best = 0, tied = 0;
    for (i = 0; i < count; i++) {
        uint32_t score = gm_is_compiled(artifact, entry, variable, given[i].dtype) ? count : 0;
        if (given[i].dtype == GRISTMILL_NONE) continue;
        for (at = 0; at < count; at++) score += given[at].dtype == given[i].dtype;
        if (most && score == best && given[i].dtype != most->dtype) tied = 1;
        if (most && score <= best) continue;
        most = &given[i];
        best = score;
        tied = 0;
    }
    for (i = 0; most && !other && i < count; i++) {
        if (!given[i].absent && given[i].dtype != most->dtype) other = &given[i];
    }
    if (!most || !other) return gm_fail(GRISTMILL_INVALID_ARGUMENT, who, "types disagree");
    if (tied) {
        return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                       "`%s` has type %s (code %" PRId32 ") and `%s` has type %s (code %" PRId32
                       "); they must be of one type", most->parameter,
                       gm_element_name(artifact, most->dtype), most->dtype, other->parameter,
                       gm_element_name(artifact, other->dtype), other->dtype);
    }
    return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                   "`%s` has type %s (code %" PRId32 "); as `%s`, it must be %s", other->parameter,
                   gm_element_name(artifact, other->dtype), other->dtype, most->parameter,
                   gm_element_name(artifact, most->dtype));
}

/* Bits of a double: how it stands among a call's values. */
GM_FUNCTION uint64_t gm_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

GM_FUNCTION int gm_same_text(const char *given, const char *compiled) {
    return given && strcmp(given, compiled) == 0;
}

/* No kernel serves a call: names the nearest, and the first condition that fails. */
GM_COLD int32_t gm_no_specialisation(const gm_artifact *artifact, const gm_call *call,
                                     const gm_place *place) {
    const gm_entry *entry = call->entry;
    const gm_group *nearest = NULL;
    uint64_t distance, least = UINT64_MAX;
    uint32_t i, at, variant = 0;
    gm_message message = gm_begin(entry->name);
    for (at = 0; at < entry->group_count; at++) {
        const gm_group *group = &entry->groups[at];
        for (i = group->first; i < group->first + group->count; i++) {
            distance = gm_distance(call, place, group, i);
            if (distance < least) {
                least = distance;
                nearest = group;
                variant = i;
            }
        }
    }
    if (!nearest) {
        gm_say(&message, "the artifact has no binary of this kernel");
        return GRISTMILL_NO_SPECIALISATION;
    }
    gm_say(&message, "no specialisation for this call. The nearest (%s",
           artifact->archs[nearest->key >> entry->arch_shift].name);
    for (i = 0; i < entry->field_count; i++) {
        const gm_field *field = &entry->fields[i];
        gm_say(&message, ", %s=%s", field->name, field->values[gm_field_of(field, nearest->key)]);
    }
    gm_say(&message, ", num_warps=%" PRId32 ", num_stages=%" PRId32 ") needs ",
           nearest->num_warps, nearest->num_stages);
    gm_say_difference(&message, artifact, call, place, nearest, variant);
    return GRISTMILL_NO_SPECIALISATION;
}

#endif
