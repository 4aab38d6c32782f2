"""``mixsize bench peers``: accuracy and time beside other libraries' image-size schedules."""
