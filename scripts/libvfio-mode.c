/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Linux's selftests that have no variant for each IOMMU interface take the
 * library's default, iommufd. Linked in, this lets the environment choose. */
#include <stdlib.h>

extern const char *default_iommu_mode;

__attribute__((constructor)) static void choose_iommu_mode(void)
{
	const char *mode = getenv("VFIO_SELFTESTS_IOMMU_MODE");

	if (mode)
		default_iommu_mode = mode;
}
